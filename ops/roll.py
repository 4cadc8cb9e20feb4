"""A rolling restart: one child after another gets a successor, while the others work on."""

import time
from collections import deque
from collections.abc import Callable

from configs.errors import FleetError
from ops.running import Running

#: In events of a whole roll, in place of a child's name.
FLEET = "fleet"


class Roll:
    """Goes over the children in their order; a child whose successor does not come up ends it.

    A child that may overlap works until its successor is ready, and drains then; another one drains first, and its
    successor starts at once, without a back-off.

    Args:
        children: the supervisor's, by name; here a successor takes its place.
        beside: processes beside them, which the supervisor looks after too: a successor that starts, a forerunner that
            drains.
        note: says what happened to a child.
    """

    def __init__(
        self,
        children: dict[str, Running],
        beside: list[Running],
        note: Callable[[Running, str, str], None],
    ) -> None:
        self._children = children
        self._beside = beside
        self._note = note
        self._todo = deque(children)
        #: The successor of the child in hand, and its forerunner; the same object where they do not overlap.
        self._new: Running | None = None
        self._old: Running | None = None
        self._begun = 0.0
        self.replaced = 0
        #: Why it ended before all were replaced.
        self.fault = ""

    def step(self, now: float) -> bool:
        """Goes on as far as it can without waiting; False once it is over."""
        new, old = self._new, self._old
        if new is None or old is None:
            return self._begin(now)
        return self._in_place() if new is old else self._overlapping(new, old, now)

    def _begin(self, now: float) -> bool:
        while self._todo:
            running = self._children[self._todo[0]]
            rolls = running.child.lasting and not (running.child.endless or running.retired or running.paused)
            if rolls and running.phase not in {"finished", "stopped"}:
                break
            self._todo.popleft()
        else:
            return False
        if running.phase != "ready":
            return True
        self._begun, self._old = now, running
        if not running.child.overlaps:
            self._new = running
            running.drain(now)
            self._note(running, "draining", "to be replaced")
            return True
        self._new = running.successor()
        try:
            self._new.start()
        except FleetError as error:
            return self._stop(f"{error}; its forerunner works on")
        self._beside.append(self._new)
        self._note(self._new, "started", f"pid {self._new.pid}, beside pid {running.pid}")
        return True

    def _in_place(self) -> bool:
        running = self._children[self._todo[0]]
        if running.phase in {"backing off", "stopped", "finished"}:
            return self._stop(f"its successor did not come up: {running.how_it_ended()}")
        # Draining, waiting and starting are its way; one that is paused meanwhile starts anew another time.
        return self._next() if running.phase in {"ready", "paused"} else True

    def _overlapping(self, new: Running, old: Running, now: float) -> bool:
        if self._children[self._todo[0]] is new:
            return self._next() if old.pid is None else True
        if new.pid is None:
            return self._stop(f"its successor did not come up: {new.how_it_ended()}; its forerunner works on")
        if new.phase == "ready":
            # One that died meanwhile has its successor here.
            self._children[self._todo[0]] = new
            self._beside.remove(new)
            if old.pid is not None:
                self._beside.append(old)
                old.drain(now)
                self._note(old, "draining", f"pid {old.pid}")
        return True

    def _next(self) -> bool:
        running = self._children[self._todo.popleft()]
        self._note(running, "replaced", f"by pid {running.pid} in {time.monotonic() - self._begun:.1f} s")
        self._new = self._old = None
        self.replaced += 1
        return bool(self._todo)

    def _stop(self, why: str) -> bool:
        self.fault = f"{self._todo[0]}: {why}"
        self._note(self._children[self._todo[0]], "not replaced", why)
        return False
