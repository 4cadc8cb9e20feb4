"""A click command as a process: every error is one line without secrets, every end has a named exit status."""

import errno
import io
import os
import sys

import click
import structlog

from configs.errors import DiskError, FleetError, ServerError, UsageError
from routing.logs import without_secrets

#: What a shell gives for SIGINT and for SIGPIPE.
INTERRUPTED, BROKEN_PIPE = 130, 141


def run_command(command: click.Command, name: str | None = None) -> None:
    """Runs ``command`` with this process's arguments, and ends the process where it did not end well.

    Args:
        command: its errors are FleetErrors.
        name: what the user calls it; None: the script's name.
    """
    try:
        command.main(prog_name=name, standalone_mode=False)
    except FleetError as error:
        _end(str(error), error.exit_status)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(without_secrets(said.getvalue()), err=True, nl=False)
        sys.exit(UsageError.exit_status)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (head, less): nothing to say, nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except Exception as error:  # noqa: BLE001 - Python's own status for it is 1, which here means "images lost"
        # Not above: --help does without a client of the server.
        from routing.server_check import server_error  # noqa: PLC0415

        if known := server_error(error):
            _end(str(known), known.exit_status)
        if isinstance(error, OSError):
            _end(*_of_the_system(error))
        structlog.get_logger().critical("a mistake of natix-fleet itself", exc_info=error)
        _end(f"{type(error).__name__}, a mistake of natix-fleet itself: please report it", FleetError.exit_status)


def _of_the_system(error: OSError) -> tuple[str, int]:
    """What the operating system refused, with the path or the peer that it names, and the status for it."""
    cause = error.strerror or str(error) or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError) or error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return f"a connection failed: {cause}; check the network and what it is to reach", ServerError.exit_status
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    where = " and ".join(paths) or "a file"
    return f"{where}: {cause}; check its path, its permissions and the disk", DiskError.exit_status


def _end(message: str, status: int) -> None:
    click.echo(f"error: {without_secrets(message)}", err=True)
    sys.exit(status)
