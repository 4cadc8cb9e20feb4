"""Named lines at which a process can be made to kill itself: how `make chaos` hits a window that is microseconds wide.

Inert unless the environment names a folder. Then a process that comes to a failpoint whose file is in that folder
renames the file to ``<window>.<pid>`` (so one arming kills one process, and tells which) and ends by SIGKILL.
"""

import os
import signal
from enum import StrEnum
from pathlib import Path

#: The folder with the armed windows.
VARIABLE = "NATIX_FLEET_FAILPOINTS"


class Window(StrEnum):
    """Where in a photo's way a process dies."""

    BYTES_ADMIT = "bytes-admit"
    ADMIT_DOORBELL = "admit-doorbell"
    #: A doorbell left the broker's queue, and the worker has not read it. The campaign's own processes have it.
    POP_IN_FLIGHT = "pop-in-flight"
    CLAIM_SETTLE = "claim-settle"
    SETTLE_DOORBELL = "settle-doorbell"
    #: Inside the collector's database transaction, rows inserted.
    IN_TRANSACTION = "in-transaction"
    #: Rows durable, the ledger's commit not begun.
    INSERT_COMMIT = "insert-commit"


_folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def failpoint(window: Window) -> None:
    """Ends this process here if the window is armed."""
    if _folder is None:
        return
    try:
        (_folder / window).rename(_folder / f"{window}.{os.getpid()}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
