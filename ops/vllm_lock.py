"""Who runs natix-fleet vllm start in this folder, and for which profile; and who starts the server of a port: locks."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from configs.errors import BusyError, ConfigError
from configs.profile import Profile, load_profile
from ops.lock import RunLock, held_by

#: Held by `natix-fleet vllm start`.
LOCK_FILE = Path("var/vllm/lock")
#: Before the profile's name, as the lock says who holds it.
_COMMAND = "natix-fleet vllm start --profile "


class Started(Struct, frozen=True):
    """Somebody else's `natix-fleet vllm start`."""

    pid: int
    #: As its user named it.
    profile_name: str

    def profile(self) -> Profile:
        """What it runs, as far as the file still says it.

        Raises:
            ConfigError: the file is gone, or no profile any more.
        """
        try:
            return load_profile(self.profile_name)
        except ConfigError as error:
            raise ConfigError(
                f"natix-fleet vllm start (pid {self.pid}) runs servers of a profile that cannot be read any more: "
                f"mend it, or natix-fleet vllm stop first: {error}"
            ) from None

    def runs(self, profile_name: str) -> bool:
        """Whether that is its profile: one may be named, or told by its path.

        Raises:
            ConfigError: there is no such profile.
        """
        return profile_name == self.profile_name or load_profile(profile_name) == self.profile()


def start_lock(profile_name: str) -> RunLock:
    """The lock of `natix-fleet vllm start`."""
    return RunLock(LOCK_FILE, f"{_COMMAND}{profile_name}", "vllm start")


def started(lock: Path = LOCK_FILE) -> Started | None:
    """Who starts servers here, or has started them; None: nobody but perhaps this process.

    Raises:
        DiskError: the lock cannot be read.
        BusyError: somebody took it this moment.
    """
    found = held_by(lock)
    if found is None or found[0] == os.getpid():
        return None
    return Started(found[0], found[1].removeprefix(_COMMAND))


@contextmanager
def starting(urls: Mapping[str, str], command: str, folder: Path = LOCK_FILE.parent) -> Iterator[None]:
    """Nobody else of this folder starts these servers meanwhile: until one listens, only a lock tells that it comes.

    Args:
        urls: of the servers, by their tier's name.
        command: what looks after them, for the next one's error; ends with --profile and its name.
        folder: for the locks, one a port.

    Raises:
        BusyError: somebody looks after one of them.
        DiskError: a lock cannot be taken.
    """
    with ExitStack() as stack:
        for tier, url in urls.items():
            try:
                stack.enter_context(RunLock(_lock_file(folder, url), command))
            except BusyError:
                require_nobody_starts({tier: url}, folder)
                raise BusyError(f"tier {tier!r}: its port was given back this moment: try again") from None
        yield


def require_nobody_starts(urls: Mapping[str, str], folder: Path = LOCK_FILE.parent) -> None:
    """Refuses servers that somebody else looks after, who started them and will start them again.

    Args:
        urls: of servers that do not listen, by their tier's name.
        folder: of the locks.

    Raises:
        BusyError: says who, and what to wait for.
        DiskError: a lock cannot be read.
    """
    for tier, url in urls.items():
        if found := held_by(_lock_file(folder, url)):
            pid, command = found
            # The servers of a run end with it.
            healthy = f"natix-fleet vllm status --profile {command.partition(' --profile ')[2]} ends with 0, or "
            until = "" if command.startswith("natix-fleet run") else healthy
            raise BusyError(
                f"tier {tier!r}: {command} (pid {pid}) looks after the server at {url}, which does not answer: wait "
                f"until {until}that command has ended"
            )


def _lock_file(folder: Path, url: str) -> Path:
    return folder / f"{urlsplit(url).port}.lock"
