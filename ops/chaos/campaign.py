"""One campaign: a real fleet at work, its processes and its server killed one after another, everything checked."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from configs.errors import AccountError
from configs.profile import Profile, load_profile
from ops.account import Baseline, baseline, settle_account
from ops.chaos.plan import SERVER, Kill, draw_kills
from ops.chaos.recount import recount
from ops.chaos.recovery import Recoveries
from ops.chaos.report import Result, recovery
from ops.chaos.windows import Windows
from ops.child import Backoff, Child
from ops.fleet import command, fleet_children
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from producers.admitted import JournalReport, read_journal
from routing.audit import audit
from routing.failpoints import VARIABLE
from routing.ledger import PREFIX, Ledger
from workers.verdicts import VerdictDatabase

PROFILE = Path(__file__).parent / "chaos.toml"
PRODUCERS = ("feed-0", "feed-1")
#: Windows armed at once at most: their kills may overlap.
ARMED_AT_ONCE = 3
#: Nothing ended for so long: the campaign is stuck, which is a failure.
STUCK_S = 120.0
SAY_EVERY_S = 15.0
#: A killed server stays away for so long.
SERVER_AWAY_S = 0.5


class Settings(Struct, frozen=True):
    """One campaign's size."""

    seed: int
    images: int
    kills: int
    fsync: Literal["always", "everysec"]
    #: Recovery from a worker's death must not take longer, where nothing disturbs it.
    recovery_within_s: float = 15.0


class Campaign:
    """Runs once.

    Args:
        folder: of its own; made.
        photos: the source's folder.
        labels: of its photos.
        settings: how much.
        say: gets a line now and then.
        module: what its processes run; tests give a fleet that is broken on purpose.
    """

    def __init__(
        self,
        folder: Path,
        photos: Path,
        labels: list[int],
        settings: Settings,
        say: Callable[[str], object],
        module: str = "ops.chaos.process",
    ) -> None:
        self._module = module
        self._folder, self._photos, self._labels = folder, photos, labels
        self._settings, self._say = settings, say
        self._windows = Windows(folder / "armed")
        self._database = folder / "verdicts.db"
        self._profile: Profile = load_profile(str(PROFILE))
        self._server = EmbeddedServer(folder / "server", fsync=settings.fsync)
        self._kills: Counter[str] = Counter()
        self._names: dict[int, str] = {}
        self._problems: list[str] = []
        self._audits = 0
        self._undone = 0

    def run(self) -> Result:
        """Kills until all kills were done and all images ended, then drains and settles the account.

        Raises:
            FleetError: a process was given up, or nothing moved any more.
        """
        with self._server:
            self._client = self._server.address.connect()
            self._ledger = Ledger(self._client)
            before = baseline(self._ledger, self._profile)
            self._recoveries = Recoveries(self._client, self._folder)
            backoff = Backoff(base_s=0.1, cap_s=0.3, give_up_exits=100_000)
            with Supervisor(self._children(), backoff=backoff) as self._supervisor:
                self._wait(lambda: self._supervisor.all_ready)
                begun_s = time.monotonic()
                self._kill_all()
                # A producer that died after admit and before its journal's line writes that line when it is back.
                offsets = self._offsets()
                self._wait(lambda: all(end >= offsets[source] for source, end in self._journal_ends().items()))
                for name in PRODUCERS:
                    self._supervisor.retire(name)
                self._wait(self._drained)
                seconds = time.monotonic() - begun_s
                self._supervisor.stop()
            self._audit("at the end")
            return self._result(before, seconds)

    def _children(self) -> list[Child]:
        env = {DATABASE: f"sqlite:///{self._database.absolute()}", VARIABLE: str(self._windows.folder.absolute())}
        children = fleet_children(self._profile, str(PROFILE), self._server.address, self._folder, env, None)
        for name in PRODUCERS:
            argv = ["feed", str(self._photos), "--loop", "--run", name, "--profile", str(PROFILE)]
            argv += ["--journal", str(self._folder / "journal")]
            url = {"REDIS_URL": self._server.url}
            log = self._folder / f"{name}.log"
            children.append(Child(name=name, argv=command(*argv), env=env | url, log=log, lasting=False))
        return [replace(c, argv=[x if x != "ops.cli" else self._module for x in c.argv]) for c in children]

    def _kill_all(self) -> None:
        names = [state.name for state in self._supervisor.states]
        plan = draw_kills(self._settings.seed, self._settings.kills, [*names, SERVER])
        said_s = time.monotonic()
        for i, kill in enumerate(plan):
            # Spread over the images: never so dense that nothing gets done in between.
            due = self._settings.images * (i + 1) // (len(plan) + 1)
            self._wait(lambda kill=kill, due=due: self._may(kill, due))  # type: ignore[misc]
            if kill.window:
                self._windows.arm(kill.window)
            elif kill.target == SERVER:
                self._kill_server(kill)
            else:
                self._kill_process(kill)
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                self._say(f"{self._kills.total()} of {len(plan)} kills, {self._ended():,} images ended")
        self._wait(lambda: not self._windows.armed() and self._ended() >= self._settings.images)

    def _may(self, kill: Kill, due: int) -> bool:
        """Whether it is time for a kill: enough was done since the last one, and its target is there."""
        if self._ended() < due:
            return False
        if kill.window:
            armed = self._windows.armed()
            return kill.window not in armed and len(armed) < ARMED_AT_ONCE
        return kill.target == SERVER or self._pid(kill.target) is not None

    def _pid(self, name: str) -> int | None:
        return next(state.pid for state in self._supervisor.states if state.name == name)

    def _kill_process(self, kill: Kill) -> None:
        pid = self._pid(kill.target)
        if pid is None:
            raise RuntimeError(f"{kill.target} does not run")
        os.kill(pid, signal.SIGKILL)
        self._died(kill.kind, pid)

    def _died(self, kind: str, pid: int) -> None:
        self._kills[kind] += 1
        self._recoveries.died(self._names.get(pid, "?"), pid, time.monotonic())
        self._audit(f"after a kill, {kind}")

    def _kill_server(self, kill: Kill) -> None:
        self._server.kill()
        self._kills[kill.kind] += 1
        self._recoveries.server_died()
        acknowledged = self._journal_ends()
        time.sleep(SERVER_AWAY_S)
        self._server.start()
        offsets = self._offsets()
        self._undone += sum(max(0, end - offsets[source]) for source, end in acknowledged.items())
        self._audit("after a kill of the server")

    def _journals(self) -> list[JournalReport]:
        return [read_journal(path) for path in sorted((self._folder / "journal").glob("*.jsonl"))]

    def _journal_ends(self) -> dict[str, int]:
        return {journal.header.source: journal.end for journal in self._journals()}

    def _offsets(self) -> dict[str, int]:
        """What the ledger has admitted of each source that has a journal."""
        offsets: dict[str, int] = {}
        for source in self._journal_ends():
            offset: Any = self._client.hget(f"{PREFIX}src:{source}", "offset")
            offsets[source] = int(offset or 0)
        return offsets

    def _audit(self, when: str) -> None:
        self._audits += 1
        self._problems += [f"{when}: {problem}" for problem in audit(self._client).problems]

    def _ended(self) -> int:
        account = self._ledger.snapshot([]).account
        return account.get("verdicts", 0) + account.get("quarantined", 0)

    def _drained(self) -> bool:
        fed = all(state.phase == "finished" for state in self._supervisor.states if state.name in PRODUCERS)
        return fed and self._ledger.snapshot([]).use.get("items", 0) == 0

    def _wait(self, done: Callable[[], bool]) -> None:
        """Keeps the fleet going until ``done``.

        Raises:
            AccountError: nothing ended for long.
        """
        ended, moved_s = -1, time.monotonic()
        while True:
            self._tend()
            if done():
                return
            if (now := self._ended()) != ended:
                ended, moved_s = now, time.monotonic()
            elif time.monotonic() - moved_s > STUCK_S:
                raise AccountError(f"nothing ended for {STUCK_S:g} s; logs in {self._folder}")
            time.sleep(POLL_INTERVAL_S)

    def _tend(self) -> None:
        """Restarts what died, notices who is who, who died at a window, and what has recovered."""
        for window, pid in self._windows.fired():
            self._died(window, pid)
        self._supervisor.poll()
        pids = {state.name: state.pid for state in self._supervisor.states if state.pid is not None}
        self._names |= {pid: name for name, pid in pids.items()}
        self._recoveries.notice(pids)
        self._recoveries.look(time.monotonic())

    def _result(self, before: Baseline, seconds: float) -> Result:
        with VerdictDatabase(f"sqlite:///{self._database}", create=False) as database:
            account = settle_account(self._journals(), database, self._ledger, before)
        problems = [*self._problems, *account.problems, *recount(self._database, self._ledger, self._labels)]
        undisturbed = recovery(self._recoveries.undisturbed_s)
        if undisturbed.max > (within_s := self._settings.recovery_within_s):
            problems.append(f"recovery took {undisturbed.max} s, more than {within_s:g} s")
        counters = self._ledger.snapshot([]).account
        return Result(
            admitted=account.admitted,
            verdicts=account.verdicts,
            quarantined=account.quarantined,
            lost=account.lost,
            counted_twice=account.counted_twice,
            fenced=counters.get("fenced", 0),
            kills=dict(sorted(self._kills.items())),
            recovery_s=undisturbed,
            recovery_disturbed_s=recovery(self._recoveries.disturbed_s),
            seconds=round(seconds, 1),
            seed=self._settings.seed,
            fsync=self._settings.fsync,
            audits=self._audits,
            undone_by_server=self._undone,
            reaped=counters.get("reaped", 0),
            reconciled=counters.get("reconciled", 0),
            problems=problems,
        )
