"""Ties a process to the thread that starts it: it gets a signal when that thread ends, even by SIGKILL (Linux)."""

import os
import signal
import sys
from collections.abc import Sequence

# Runs in the child, then becomes the command: PR_SET_PDEATHSIG (1) survives exec. Setting it between fork and exec
# (preexec_fn) can deadlock in a process with threads. Python ignores SIGPIPE and SIGXFSZ; the command must not.
_TIE = """
import ctypes, os, signal, sys
parent, number, *argv = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0)
if os.getppid() != int(parent):
    sys.exit("the parent ended before its child began")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.execvp(argv[0], argv)
"""


def tied(argv: Sequence[str], number: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, made to get a signal when the thread that starts it ends, even by SIGKILL.

    Linux only; elsewhere the command comes back as it is. It costs 20-30 ms at start. The thread matters: start such
    a child from one that lives as long as the process.
    """
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), str(int(number)), *argv]
