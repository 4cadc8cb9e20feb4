"""What is known of one tier that sleeps, and where it is by that: pure bookkeeping, no calls."""

import math

from configs.profile import Tier
from ops.child import ChildState
from ops.residency import Place, Sleeper

#: The supervisor asked for leave to start a server within this time: it is due.
_DUE_S = 2.0
#: A standing server that says nothing at so many looks in a row is away: 5 s where its port is closed, 45 s where it is
#: only slow. A look that is missed now and then frees no device.
_SILENT_LOOKS = 20
#: A tier that did not come up, or whose server failed to move, asks again after this long.
AGAIN_S = 10.0
#: Our own engines have so long to be ready, more than the supervisor gives one start; or so many failed starts.
_UP_S = 300.0
_FAILED_STARTS = 3


def worker_names(tier: Tier) -> list[str]:
    """Names of a tier's worker processes."""
    return [tier.name] if tier.workers == 1 else [f"{tier.name}-{i}" for i in range(tier.workers)]


class SleepingTier:
    """One tier; whoever has several threads guards it.

    Args:
        tier: of the profile.
        devices: that it is on.
        url: of its server; empty: the fleet's own engines, which sleep by not running.
        child: its server's name under the supervisor; empty: somebody else's server, or none.
        after: children that its own workers come after: they could not use its devices before.
    """

    def __init__(
        self, tier: Tier, devices: frozenset[str], url: str = "", child: str = "", after: tuple[str, ...] = ()
    ) -> None:
        self.tier = tier
        self.devices = devices
        self.url = url
        self.child = child
        self.after = after
        self.place: Place = "away"
        self.since_s = -math.inf
        self.waiting = 0
        self.waiting_since_s = math.inf
        #: A call of its server is going on.
        self.calling = False
        #: Calls in a row that its server, which runs, did not follow.
        self.refusals = 0
        #: Its workers are told to claim nothing.
        self.rests = False
        #: Its server's own word, if it gave one.
        self.asleep: bool | None = None
        #: Looks in a row at which a standing server gave none.
        self._silent = 0
        #: Its own processes are to run.
        self.wanted = False
        #: How often each had started again when they were last at rest, or had had a turn.
        self._restarts: dict[str, int] = {}
        #: When its last move began, of its own processes.
        self.began_s = -math.inf
        #: One of those that it comes after was never ready.
        self.held_up = bool(after)
        #: It does not ask before.
        self.not_before_s = -math.inf
        #: When the supervisor last asked for leave to start its server; how often that had started when it got it.
        self.due_s = -math.inf
        self.leave: int | None = None
        #: Its server came up, and nobody has asked for it yet.
        self._fresh = False

    def seen(self, now_s: float) -> Sleeper:
        """As ops.residency wants it."""
        silent = self.held_up or now_s < self.not_before_s
        return Sleeper(
            tier=self.tier.name,
            devices=self.devices,
            place=self.place,
            since_s=self.since_s,
            waiting=0 if silent else self.waiting,
            waiting_since_s=self.waiting_since_s,
            wake_items=self.tier.server.wake_items,
            wake_after_s=self.tier.server.wake_after_s,
            awake_s=self.tier.server.awake_s,
        )

    def waits(self, items: int, now_s: float) -> None:
        """So many items wait for it. What it has before it while it is awake does not count as waiting."""
        self.waiting = items
        if not items or self.place == "awake":
            self.waiting_since_s = math.inf
        elif self.waiting_since_s == math.inf:
            self.waiting_since_s = now_s

    def settle(self, states: dict[str, ChildState], now_s: float) -> None:
        """Where it is, by what its server says and the supervisor knows."""
        self.held_up = not all(name in states and states[name].proven for name in self.after)
        self._silent = self._silent + 1 if self.asleep is None and not self.calling else 0
        if self.calling:
            place: Place = "moving"
        elif not self.url:
            place = self._own([states[name] for name in worker_names(self.tier) if name in states], now_s)
        elif self.child:
            place = self._under_us(states.get(self.child), now_s)
        else:
            place = self._of_others()
        if place == self.place:
            return
        # One that came up for nobody has no turn: it is put to sleep as soon as another one wants to start.
        idle = place == "awake" and self._fresh and not self.waiting
        self.place, self.since_s = place, -math.inf if idle else now_s
        if place in {"awake", "asleep"}:
            self._fresh = False

    def _own(self, workers: list[ChildState], now_s: float) -> Place:
        phases = {worker.phase for worker in workers}
        if not self.wanted or (self.place == "awake" and now_s - self.since_s >= self.tier.server.awake_s):
            self._restarts = {worker.name: worker.restarts for worker in workers}
        elif phases != {"ready"} and self._fails(workers, now_s):
            # The supervisor starts them again without end, and nobody else would ever get their device.
            self.wanted, self.began_s, self.not_before_s = False, -math.inf, now_s + AGAIN_S
        if self.wanted:
            return "awake" if phases == {"ready"} else "moving"
        return "asleep" if phases <= {"paused", "finished", "stopped"} else "moving"

    def _fails(self, workers: list[ChildState], now_s: float) -> bool:
        more = [worker.restarts - self._restarts.get(worker.name, 0) for worker in workers]
        return max(more, default=0) >= _FAILED_STARTS or (self.place == "moving" and now_s - self.since_s >= _UP_S)

    def _of_others(self) -> Place:
        if self.asleep is None:
            # It answered late, or a call of it ended just now: it has what it had.
            return "away" if self._silent >= _SILENT_LOOKS else self.place
        return "asleep" if self.asleep else "awake"

    def _under_us(self, state: ChildState | None, now_s: float) -> Place:
        phase = state.phase if state else "stopped"
        if phase == "ready":
            self.leave = None
            if self.asleep is None:
                # It does not say: where it was last, or it has only just come up.
                return self.place if self.place in {"awake", "asleep"} else "moving"
            return "asleep" if self.asleep else "awake"
        self.asleep, self.refusals = None, 0
        if phase == "starting":
            self._fresh = True
            return "moving"
        if state is None or phase not in {"waiting", "backing off"}:
            return "away"
        if self.leave is not None and state.restarts > self.leave:
            # It started, and died before it was ready.
            self.leave = None
        if self.leave is not None:
            return "moving"
        return "off" if now_s - self.due_s < _DUE_S else "away"
