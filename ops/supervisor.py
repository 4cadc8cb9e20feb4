"""Keeps a fleet's processes running: starts them in order, restarts what dies, drains them, leaves none behind.

One thread, no callbacks from elsewhere: whoever owns the supervisor calls ``poll`` a few times a second, beside a
progress display for instance. Each child leads a session of its own, so Ctrl-C in the terminal reaches the supervisor
only, and what a child started dies with the child.
"""

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from configs.errors import FleetError
from ops.child import Backoff, Child, ChildState, Event
from ops.comeback import delay_s, given_up
from ops.interrupts import Interrupts
from ops.roll import FLEET, Roll
from ops.running import STUCK_S, Running

POLL_INTERVAL_S = 0.05


class Supervisor:
    """Runs children until they are drained.

    Use it as a context manager: on the way out it drains whatever still runs, so an exception leaves no process.

    Args:
        children: in the order of start; a child may only wait for earlier ones.
        backoff: how soon a dead child is started again, and when it is given up.
        stream: gets the output of children without a log file, each line after its child's name.
        interrupts: who counts the signals that ``run`` and ``stop`` heed, when it is not this supervisor.

    Raises:
        ValueError: two children share a name, or one waits for a name that does not come before it.
    """

    def __init__(
        self,
        children: Sequence[Child],
        backoff: Backoff | None = None,
        stream: TextIO | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        names: list[str] = []
        for child in children:
            if child.name in names or not set(child.after) <= set(names):
                raise ValueError(f"child {child.name!r}: its name is taken, or it waits for one that comes later")
            names.append(child.name)
        width = max(map(len, names), default=0)
        self._children = {
            child.name: Running(child, sys.stderr if stream is None else stream, width) for child in children
        }
        self._backoff = backoff or Backoff()
        self._events: list[Event] = []
        self._draining = False
        self._fault: FleetError | None = None
        self._interrupts = interrupts or Interrupts()
        self._roll: Roll | None = None
        #: Processes beside the children while a rolling restart goes on.
        self._beside: list[Running] = []

    @property
    def states(self) -> list[ChildState]:
        """Every child as it is now, in the order of start."""
        return [running.state for running in self._children.values()]

    @property
    def all_ready(self) -> bool:
        """Whether every child is ready, is paused, or ended as it should."""
        return all(state.phase in {"ready", "paused", "finished"} for state in self.states)

    @property
    def ended(self) -> bool:
        """Whether no child runs and none will be started."""
        return not self._beside and all(state.phase in {"finished", "stopped"} for state in self.states)

    @property
    def _all(self) -> list[Running]:
        return [*self._children.values(), *self._beside]

    def poll(self) -> list[Event]:
        """Does what is due, without waiting; returns what happened since the last call.

        Raises:
            FleetError: a child was given up, or cannot be started. The others still run: drain them.
        """
        if self._fault is not None and not self._draining:
            raise self._fault
        now = time.monotonic()
        for running in self._all:
            running.forward_output()
            if running.reap():
                self._after_exit(running, now)
            elif running.phase == "starting":
                self._check_ready(running, now)
            elif running.phase == "ready" and not running.is_alive:
                self.end(running.child.name, "it does not answer")
            elif running.phase == "draining":
                self._see_out(running, now)
        self._beside[:] = [running for running in self._beside if running.pid is not None]
        if self._draining:
            self._drain_step(now)
        else:
            for running in self._children.values():
                self._start_if_due(running, now)
            self._roll_step(now)
        events, self._events = self._events, []
        return events

    def retire(self, name: str) -> None:
        """Asks one child to end, for good: it is not started any more, however the process that runs now ends."""
        self._children[name].retire()

    def pause(self, name: str) -> None:
        """Drains one child, which then counts as ready and does not run until ``resume``."""
        running = self._children[name]
        if running.paused or running.retired or self._draining:
            return
        running.paused = True
        if running.phase in {"waiting", "backing off"}:
            running.phase = "paused"
        elif running.phase in {"starting", "ready"}:
            running.drain(time.monotonic())
            self._note(running, "draining", "paused")

    def resume(self, name: str) -> None:
        """Starts a paused child again; nothing to one that is not paused."""
        self._children[name].resume()

    def end(self, name: str, why: str) -> None:
        """Kills one child that is ready and yet of no use; what follows is as after any other death of it."""
        running = self._children[name]
        if running.phase == "ready" and not running.killed:
            running.kill()
            self._note(running, "killed", why)

    def roll(self) -> None:
        """Restarts one child after another (see ops/roll.py); ``poll`` does it. Nothing while it is at it already."""
        if self._roll is None and not self._draining:
            self._roll = Roll(self._children, self._beside, self._note)

    def drain(self) -> None:
        """Asks all children to end, in the reverse order of start; ``poll`` does it.

        A child is asked once the children that wait for it are gone, so a server outlives the workers that need it;
        one that takes longer than its ``drain_s`` is killed with all it started.
        """
        self._draining = True
        if self._roll:
            self._events.append(Event(FLEET, "restart stopped", "the fleet ends"))
            self._roll = None

    def kill(self) -> None:
        """Kills every child and all that they started, now."""
        self._draining = True
        for running in reversed(self._all):
            if running.pid is not None:
                running.kill()
                self._note(running, "killed", "at once")
                running.wait()
            running.phase = "finished" if running.phase == "finished" else "stopped"
        self._beside.clear()

    def stop(self) -> None:
        """Drains and waits for it; at most the sum of the ``drain_s`` of children that wait for each other."""
        self.drain()
        try:
            while not self.ended:
                self._heed_signals()
                self.poll()
                time.sleep(POLL_INTERVAL_S)
        except BaseException:
            # An impatient Ctrl-C, for one. Whatever it is, it must not leave processes.
            self.kill()
            raise

    def run(self, on_events: Callable[[list[Event]], object] | None = None) -> None:
        """Polls until every child has ended; for the main thread, whose signals it takes over meanwhile.

        The first SIGINT, SIGTERM or SIGHUP drains, a SIGINT after it kills at once.

        Args:
            on_events: called about 20 times a second with what happened, perhaps nothing.

        Raises:
            FleetError: a child was given up; the others have been drained.
        """
        with self._interrupts.heeded(), self:
            while not self.ended:
                self._heed_signals()
                events = self.poll()
                if on_events:
                    on_events(events)
                time.sleep(POLL_INTERVAL_S)
        if self._fault is not None:
            raise self._fault

    def _heed_signals(self) -> None:
        if self._interrupts.count > 1:
            self.kill()
        elif self._interrupts.count == 1:
            self.drain()

    def _note(self, running: Running, what: str, detail: str = "") -> None:
        self._events.append(Event(running.child.name, what, detail))

    def _start_if_due(self, running: Running, now: float) -> None:
        if running.phase not in {"waiting", "backing off"} or now < running.due:
            return
        if not (all(self._children[name].lets_others_start for name in running.child.after) and running.may_start):
            return
        try:
            running.start()
        except FleetError as error:
            self._fault = error
            running.phase = "stopped"
            self._note(running, "given up", str(error))
        else:
            self._note(running, "started", f"pid {running.pid}")

    def _check_ready(self, running: Running, now: float) -> None:
        child, age_s = running.child, now - running.started
        if running.is_ready(self._backoff.settle_s):
            running.phase = "ready"
            running.proven = True
            self._note(running, "ready", f"after {age_s:.1f} s")
        elif age_s > child.ready_within_s and not running.killed:
            # Its exit is seen by the next poll and counts as a failed start.
            running.kill()
            self._note(running, "killed", f"not ready within {child.ready_within_s:g} s")

    def _after_exit(self, running: Running, now: float) -> None:
        was_ready, status = running.phase == "ready", running.last_exit
        self._note(running, "exited", running.how_it_ended())
        if self._draining or running in self._beside:
            running.phase = "stopped"
            return
        if running.retired or running.paused or (status == 0 and not running.child.lasting):
            running.phase = "paused" if running.paused and not running.retired else "finished"
            return
        if running.phase == "draining":
            # The roll asked for it, or it is wanted again: its successor starts now.
            running.phase, running.due = "waiting", now
            return
        if fault := given_up(running, self._backoff, now, was_ready=was_ready):
            self._give_up(running, *fault)
            return
        wait_s = delay_s(running, self._backoff)
        running.due, running.phase = now + wait_s, "backing off"
        self._note(running, "restarts", f"in {wait_s:.1f} s")

    def _give_up(self, running: Running, why: str, status: int | None) -> None:
        """The fault: why, its last lines, and its own exit status where that says more than "a child failed"."""
        lines = running.last_lines() or ["(it wrote nothing)"]
        self._fault = FleetError(f"{why}: {running.how_it_ended()}; its last lines:\n  " + "\n  ".join(lines))
        if status is not None and status > 0:
            self._fault.exit_status = status
        running.phase = "stopped"
        self._note(running, "given up", f"{len(running.failed_starts)} failed starts" if running.failed_starts else why)

    def _roll_step(self, now: float) -> None:
        if self._roll is None or self._roll.step(now):
            return
        fault = self._roll.fault
        what, detail = ("restart stopped", fault) if fault else ("restarted", f"{self._roll.replaced} processes")
        self._events.append(Event(FLEET, what, detail))
        self._roll = None

    def _drain_step(self, now: float) -> None:
        for running in reversed(self._all):
            if running.phase in {"waiting", "backing off", "paused"}:
                running.phase = "stopped"
            if running.pid is None or running.phase == "draining":
                continue
            if not any(other.pid is not None and running.child.name in other.child.after for other in self._all):
                running.drain(now)
                self._note(running, "draining")

    def _see_out(self, running: Running, now: float) -> None:
        """A process that drains has its time for it."""
        if now >= running.due and not running.killed:
            running.kill()
            self._note(running, "killed", f"not gone within {running.child.drain_s:g} s")
        elif running.killed and now >= running.killed + STUCK_S:
            self._note(running, "stuck", f"pid {running.pid} does not die of SIGKILL; left to the kernel")
            running.wait()
            running.phase = "stopped"
            if not self._draining and running not in self._beside:
                # Its tier would stay without it, and nobody would say so.
                self._give_up(running, f"{running.child.name} does not die", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
