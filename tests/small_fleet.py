"""A small fleet under faults: real processes, a real server, references for photos, engines that fail as told.

``python -m tests.small_fleet first`` is one of its workers.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

import workers.app
from configs.profile import COLLECTOR, Admission, Batch, Delivery, Profile, Tier
from ops.account import Account, baseline, settle_account
from ops.bench.null_engine import label_of, score_of
from ops.child import Backoff, Child, Event
from ops.serve import DATABASE, READY_FILE, serve_collector, serve_tier
from ops.server import EmbeddedServer
from ops.supervisor import Supervisor
from producers.admission import Admission as Producer
from producers.admitted import read_journal
from producers.journal import Journal
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.logs import configure_logging
from routing.messages import Item
from routing.store import ServerPhotos
from tests.fault_engines import FaultEngine, Served
from workers.verdicts import VerdictDatabase

FIRST, SECOND = "first", "second"
PROFILE, FAULTS = "NATIX_TEST_PROFILE", "NATIX_TEST_FAULTS"
#: Set in ``env``: seconds that its processes have to drain in, instead of workers.app's.
DRAIN_S = "NATIX_TEST_DRAIN_S"


class Faults(Struct, frozen=True, forbid_unknown_fields=True):
    """What a tier's engine does on top of scoring references."""

    #: Each device batch takes this long.
    slow_s: float = 0.0
    #: It is a served model, and each answer takes this long; 0: it is a device.
    answer_s: float = 0.0
    #: Positions that end their worker by SIGKILL, by a segmentation fault, or raise.
    kills: tuple[int, ...] = ()
    segfaults: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    #: While this file exists the device hangs.
    hangs_while: str = ""


def small_profile(**fields: object) -> Profile:
    """Two tiers; one reference in five climbs to the second."""
    profile = Profile(
        name="small",
        batch=Batch(max_items=16, linger_ms=10),
        admission=Admission(max_items=20_000),
        delivery=Delivery(beat_s=0.25, lease_s=1.5, backoff_s=0.1),
        tiers=(
            Tier(name=FIRST, model="scout-s", accept_above=0.9, accept_below=0.1, max_batch=64, threads=3, stall_s=3.0),
            Tier(name=SECOND, model="scout-m", max_batch=64, threads=2, stall_s=3.0),
        ),
    )
    return msgspec.structs.replace(profile, **fields)


class SmallFleet:
    """Its processes are restarted when they die; use it as a context manager, and wait with ``until``.

    Args:
        folder: for logs, journals and the verdict database.
        server: where the ledger is.
        profile: what it runs; its model names are not loaded.
        faults: by process name (a tier's, or "first-0" and so on where a tier has several workers).
        env: what else the processes get.
    """

    def __init__(
        self,
        folder: Path,
        server: EmbeddedServer,
        profile: Profile | None = None,
        faults: Mapping[str, Faults] | None = None,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> None:
        self.folder = folder
        self.server = server
        self.profile = profile or small_profile()
        self.client = server.address.connect()
        self.ledger = Ledger(self.client)
        self.before = baseline(self.ledger, self.profile)
        self.database_url = f"sqlite:///{folder / 'verdicts.db'}"
        names = {COLLECTOR: COLLECTOR}
        for tier in self.profile.tiers:
            for i in range(tier.workers):
                names[tier.name if tier.workers == 1 else f"{tier.name}-{i}"] = tier.name
        common = {
            "REDIS_URL": url or server.url,
            DATABASE: self.database_url,
            PROFILE: msgspec.json.encode(self.profile).decode(),
            **(env or {}),
        }
        self.supervisor = Supervisor(
            [
                Child(
                    name=name,
                    argv=[sys.executable, "-m", "tests.small_fleet", stop],
                    env={
                        **common,
                        READY_FILE: str(folder / f"{name}.ready"),
                        FAULTS: msgspec.json.encode((faults or {}).get(name, Faults())).decode(),
                    },
                    log=folder / f"{name}.log",
                    ready_file=folder / f"{name}.ready",
                    overlaps=stop != COLLECTOR,
                )
                for name, stop in names.items()
            ],
            backoff=Backoff(base_s=0.05, cap_s=0.2, give_up_exits=1000),
        )
        self.journals: list[Journal] = []
        #: What happened to its processes while somebody waited.
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        self.until(lambda: self.supervisor.all_ready)
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        for journal in self.journals:
            journal.close()
        self.client.close()

    def until(self, done: Callable[[], bool], within_s: float = 60.0) -> float:
        """Waits, restarting what dies; the seconds that it took.

        Raises:
            AssertionError: it took longer; with the end of every log.
        """
        begun_s = time.monotonic()
        while not done():
            self.events += self.supervisor.poll()
            if time.monotonic() - begun_s > within_s:
                logs = [f"{p.name}:\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log"))]
                raise AssertionError("\n".join([f"not done within {within_s} s; {self.ledger.snapshot([])}", *logs]))
            time.sleep(0.02)
        return time.monotonic() - begun_s

    def pid(self, name: str) -> int:
        """The running process's."""
        pid = next(state.pid for state in self.supervisor.states if state.name == name)
        assert pid is not None, f"{name} does not run"
        return pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a process; its pid."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def log(self, name: str) -> str:
        """What a process wrote so far."""
        return (self.folder / f"{name}.log").read_text()

    def feed(self, source: str, count: int, lane: str = "bulk", deadline_ms: int = 0) -> None:
        """Admits references 0 to ``count``, ringing as a producer does; waits while the fleet is full."""
        journal = Journal.create(
            self.folder / "journal", source, profile=self.profile.digest(), spec="references", limit=None, started_ms=0
        )
        self.journals.append(journal)
        doorbells = Doorbells(make_app(self.server.address, self.profile))
        producer = Producer(
            source,
            self.profile,
            self.ledger,
            ServerPhotos(self.client),
            doorbells,
            journal,
            lane,  # type: ignore[arg-type]
        )
        producer.open()
        step = 4 * self.profile.batch.max_items
        for start in range(0, count, step):
            producer.admit(references(source, start, min(start + step, count), deadline_ms), [], {})
        producer.close()

    def done(self) -> bool:
        """Every admitted reference has ended."""
        return self.ledger.snapshot([]).use.get("items", 0) == 0

    def account(self) -> Account:
        """The account of everything that feed() admitted."""
        with VerdictDatabase(self.database_url, create=False) as database:
            journals = [read_journal(journal.path) for journal in self.journals]
            return settle_account(journals, database, self.ledger, self.before)


def references(source: str, start: int, end: int, deadline_ms: int = 0) -> list[Item]:
    """Items without pixels."""
    now_ms = int(time.time() * 1000)
    return [
        Item(
            source=source,
            position=position,
            origin="reference",
            label=label_of(position),
            sha256=bytes(32),
            stored_bytes=0,
            size_px=(224, 224),
            taken_ms=now_ms,
            deadline_ms=now_ms + deadline_ms if deadline_ms else 0,
        )
        for position in range(start, end)
    ]


def faulty_engine(faults: Faults, *, last_tier: bool) -> FaultEngine:
    """Scores references, and fails as told."""

    def score(position: int) -> float:
        if position in faults.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if position in faults.segfaults:
            ctypes.string_at(0)
        if position in faults.raises:
            raise RuntimeError(f"position {position} on purpose")
        return score_of(position, last_tier)

    def before() -> None:
        time.sleep(faults.slow_s)
        while faults.hangs_while and Path(faults.hangs_while).exists():
            time.sleep(0.05)

    return Served(score, faults.answer_s) if faults.answer_s else FaultEngine(score, before)


def main() -> None:
    """One process of a small fleet."""
    configure_logging(f"small-{sys.argv[1]}")
    workers.app.DRAIN_S = float(os.environ.get(DRAIN_S, workers.app.DRAIN_S))
    profile = msgspec.json.decode(os.environ[PROFILE], type=Profile)
    if sys.argv[1] == COLLECTOR:
        serve_collector(profile)
        return
    faults = msgspec.json.decode(os.environ[FAULTS], type=Faults)
    engine = faulty_engine(faults, last_tier=not profile.after(sys.argv[1]))
    serve_tier(profile, sys.argv[1], "cpu", engine, lambda items: [(item.position,) for item in items])


if __name__ == "__main__":
    main()
