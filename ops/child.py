"""One child process: what is to run, when it is started again, and what others may know of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Child:
    """What is to run. Secrets go into ``env``, never into ``argv``."""

    name: str
    argv: Sequence[str]
    #: Added to this process's environment.
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Names of this process's environment that are none of its business: others' secrets.
    without: tuple[str, ...] = ()
    #: A file that its output is appended to; None: line by line to the supervisor's stream.
    log: Path | None = None
    #: Children that must be ready before it starts, and that outlive it in a drain.
    after: tuple[str, ...] = ()
    #: Asked at every poll, so it must be quick; None: the ready file says it.
    ready: Callable[[], bool] | None = field(default=None, repr=False)
    #: It writes this file once it is ready; without either it is ready once it has lived for the settle time.
    ready_file: Path | None = None
    #: Not ready by then: killed, a failed start.
    ready_within_s: float = 120.0
    #: In a rolling restart its successor comes up beside it: where the two share no port and no memory of a device.
    overlaps: bool = False
    #: Makes at each start, since what was seen of one run says nothing of the next, who is asked at every poll once it
    #: is ready, so it must be quick; False: it hangs, and is killed.
    alive: Callable[[], Callable[[], bool]] | None = field(default=None, repr=False)
    #: From SIGTERM to SIGKILL.
    drain_s: float = 30.0
    #: False: a job. Status 0 ends it; only a signal, a server away (69) or somebody busy (75) is worth another try.
    lasting: bool = True
    #: A first start that fails is its last; ready once, it is started again without end, and whoever came after it goes
    #: on without it meanwhile. A rolling restart leaves it alone.
    endless: bool = False
    #: Asked before each start, at every poll, so it must be quick; False: not now. None: always.
    may_start: Callable[[], bool] | None = field(default=None, repr=False)
    #: From the lines of a run that failed to those that say why, where the last ones do not.
    cause: Callable[[Sequence[str]], Sequence[str]] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """When a dead child is started again: base, doubled at each death up to the cap, half of it by chance."""

    base_s: float = 0.5
    cap_s: float = 30.0
    #: A child that lived this long and was ready begins again at the base.
    steady_s: float = 60.0
    #: Life after which a child without a readiness check counts as ready.
    settle_s: float = 1.0
    #: So many exits before it was ready, within so many seconds: given up.
    give_up_exits: int = 5
    give_up_within_s: float = 120.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a child: started, ready, exited, restarts, given up, draining, replaced, and so on."""

    child: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class ChildState:
    """A child at one moment."""

    name: str
    #: None while it does not run.
    pid: int | None
    #: waiting, starting, ready, backing off, draining, paused, finished (ended as it should) or stopped.
    phase: str
    restarts: int
    #: Its last exit status, or the negative number of the signal that ended it; None before the first exit.
    last_exit: int | None
    #: It was ready once: who comes after an endless one does not wait for it any more.
    proven: bool = False
