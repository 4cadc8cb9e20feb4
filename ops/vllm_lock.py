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
        command: what starts them, for the next one's error.
        folder: for the locks, one a port.

    Raises:
        BusyError: somebody starts one of them, or has started it and starts it again.
        DiskError: a lock cannot be taken.
    """
    with ExitStack() as stack:
        for tier, url in urls.items():
            lock = RunLock(folder / f"{urlsplit(url).port}.lock", command)
            try:
                stack.enter_context(lock)
            except BusyError:
                pid, doing = held_by(lock.path) or ("gone by now", "somebody")
                raise BusyError(
                    f"tier {tier!r}: {doing} (pid {pid}) starts the server at {url}: wait until natix-fleet vllm "
                    "status says that it is healthy, or end that first"
                ) from None
        yield
