"""Who starts VLM servers in this folder, and for which profile: the locks of vllm start, up and run say it."""

import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from configs.errors import ConfigError
from configs.profile import Profile, load_profile
from ops.lock import RUN_LOCK_FILE, UP_LOCK_FILE, RunLock, held_by

#: Held by `natix-fleet vllm start`.
LOCK_FILE = Path("var/vllm/lock")
#: Between the command and the profile's name, as a lock says who holds it.
_PROFILE = " --profile "


class Started(Struct, frozen=True):
    """Somebody else's command."""

    pid: int
    #: Without its profile.
    command: str
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
                f"{self.command} (pid {self.pid}) runs servers of a profile that cannot be read any more: mend it, or "
                f"end that first (natix-fleet vllm stop): {error}"
            ) from None

    def runs(self, profile_name: str) -> bool:
        """Whether that is its profile: one may be named, or told by its path.

        Raises:
            ConfigError: there is no such profile.
        """
        return profile_name == self.profile_name or load_profile(profile_name) == self.profile()


def start_lock(profile_name: str) -> RunLock:
    """The lock, for whoever starts a profile's servers."""
    return RunLock(LOCK_FILE, f"natix-fleet vllm start{_PROFILE}{profile_name}", "vllm start")


def started(lock: Path = LOCK_FILE) -> Started | None:
    """Who holds a lock, by default that of `vllm start`; None: nobody but perhaps this process.

    Raises:
        DiskError: the lock cannot be read.
        BusyError: somebody took it this moment.
    """
    found = held_by(lock)
    if found is None or found[0] == os.getpid():
        return None
    command, _, profile_name = found[1].rpartition(_PROFILE)
    return Started(found[0], command, profile_name)


def fleets() -> Iterator[Started]:
    """The `up` and the `run` that go on here; each starts what servers its profile lacks.

    Raises:
        DiskError: a lock cannot be read.
        BusyError: somebody took one this moment.
    """
    for lock in (UP_LOCK_FILE, RUN_LOCK_FILE):
        if found := started(lock):
            yield found
