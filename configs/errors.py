"""Every error that ends a command, one root, two levels; the class carries the exit status.

The statuses are those of BSD's sysexits.h, so a script can tell a mistyped flag (64) from a server that is away (69).
"""


class FleetError(Exception):
    """What a user can act on: printed as one line, never as a traceback."""

    exit_status = 70


class UsageError(FleetError):
    """A flag or an argument is wrong."""

    exit_status = 64


class PhotoError(FleetError):
    """A photo cannot be judged; it is quarantined with ``reason``, its neighbours go on."""

    exit_status = 65

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class MessageError(FleetError):
    """A message cannot be decoded; ``data`` holds the offending bytes."""

    exit_status = 65

    def __init__(self, cause: str, data: bytes) -> None:
        super().__init__(cause)
        self.data = data


class NewerMessageError(MessageError):
    """A message of a version that this process does not know yet: somebody newer can read it."""


class SourceError(FleetError):
    """A photo source cannot be opened or read."""

    exit_status = 66


class ServerError(FleetError):
    """The Redis server, the broker or the database cannot be used."""

    exit_status = 69


class AccountError(FleetError):
    """Images are lost or counted twice."""

    exit_status = 1


class DiskError(FleetError):
    """A file cannot be written."""

    exit_status = 73


class BusyError(FleetError):
    """Somebody else runs already, or a port is taken."""

    exit_status = 75


class ConfigError(FleetError):
    """The profile, a model specification or a URL is wrong."""

    exit_status = 78
