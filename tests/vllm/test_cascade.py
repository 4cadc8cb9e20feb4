"""A real fleet whose second tier is a real vLLM: it votes, is killed in mid-run, comes back, and the account holds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from configs.profile import Profile, load_profile
from ops.account import baseline, settle_account
from ops.child import Child
from ops.serve import DATABASE, READY_FILE
from ops.server import EmbeddedServer
from ops.supervisor import Supervisor
from producers.admitted import read_journal
from routing.ledger import Ledger
from tests.vllm.conftest import NAME, ROOT
from tests.vllm.real_server import free_port, real_server
from workers.verdicts import VerdictDatabase

SCOUT, VLM = "scout-s", "vlm"
#: Nearly all climb; the server is the project's own to start and to kill.
PROFILE = """
name = "cascade"
delivery = { beat_s = 0.25, lease_s = 3.0, backoff_s = 0.1 }

[[tiers]]
name = "scout-s"
model = "scout-s"
accept_above = 0.999
accept_below = 0.001

[[tiers]]
name = "vlm"
model = "MODEL"
max_batch = 16
weight = 0.5
server = { url = "URL", max_outside = 1.0, in_flight = 16 }
"""


class Cascade:
    """Its processes, and what became of the photos."""

    def __init__(self, folder: Path, server: EmbeddedServer, url: str) -> None:
        self.folder = folder
        path = folder / "cascade.toml"
        path.write_text(PROFILE.replace("MODEL", NAME).replace("URL", url))
        self.profile: Profile = load_profile(str(path))
        self.client = server.address.connect()
        self.ledger = Ledger(self.client)
        self.before = baseline(self.ledger, self.profile)
        self.database_url = f"sqlite:///{folder / 'verdicts.db'}"
        self.env = {"REDIS_URL": server.url, DATABASE: self.database_url}
        self._producers = 0
        command = [sys.executable, "-m", "ops.cli"]
        processes = {"collector": ["collector"], SCOUT: ["worker", SCOUT], VLM: ["worker", VLM]}
        self.supervisor = Supervisor(
            [
                Child(
                    name=name,
                    argv=[*command, *arguments, "--profile", str(path)],
                    env={**self.env, READY_FILE: str(folder / f"{name}.ready")},
                    log=folder / f"{name}.log",
                    ready_file=folder / f"{name}.ready",
                    # The served tier's worker waits for its server.
                    ready_within_s=400,
                )
                for name, arguments in processes.items()
            ]
        )

    def until(self, done: Callable[[], bool], within_s: float = 120.0) -> None:
        """Waits; what dies is started again."""
        until_s = time.monotonic() + within_s
        while not done():
            self.supervisor.poll()
            if time.monotonic() > until_s:
                logs = [f"{p.name}:\n{p.read_text()[-2000:]}" for p in sorted(self.folder.glob("*.log"))]
                raise AssertionError("\n".join([str(self.ledger.snapshot([SCOUT, VLM])), *logs]))
            time.sleep(0.02)

    def feed(self, count: int, rate: float = 0.0) -> "subprocess.Popen[bytes]":
        """Starts a producer of so many drawn scenes; its journal lies in a folder of its own."""
        self._producers += 1
        command = [sys.executable, str(ROOT / "producers/natix.py"), f"rendered:{count}", "--rate", str(rate)]
        command += ["--profile", str(self.folder / "cascade.toml"), "--max-items", "8"]
        command += ["--journal", str(self.folder / f"journal-{self._producers}")]
        with (self.folder / f"producer-{self._producers}.log").open("wb") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **self.env}, stdout=out, stderr=out, start_new_session=True
            )

    def ended(self, producer: "subprocess.Popen[bytes]") -> bool:
        """The producer is done, and so is what it admitted."""
        return producer.poll() == 0 and self.ledger.snapshot([]).use.get("items", 0) == 0

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The verdicts on what one producer admitted."""
        (journal,) = [read_journal(p) for p in (self.folder / f"journal-{number}").rglob("*") if p.is_file()]
        source = journal.header.source
        with VerdictDatabase(self.database_url, create=False) as database:
            found = [database.row(source, i) for i in sorted(database.ids(source))]
        return [row for row in found if row]

    def tally(self) -> dict[str, int]:
        """What the served tier counted."""
        return dict(self.ledger.snapshot([VLM]).tallies[VLM])


@pytest.fixture
def cascade(server: EmbeddedServer, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Cascade]:
    """Not yet started."""
    del redis_client  # emptied
    fleet = Cascade(tmp_path, server, f"http://127.0.0.1:{free_port()}")
    yield fleet
    fleet.supervisor.stop()
    fleet.client.close()


def asked(row: dict[str, Any]) -> bool:
    """Whether the vision-language model voted."""
    return any(vote.model.startswith(f"{NAME}@") for vote in row["votes"])


def test_a_server_is_killed_in_mid_run_and_comes_back(cascade: Cascade, python: str, tiny: Path) -> None:
    """It votes; killed, its items end with the votes they had and nothing waits; back again, it votes again."""
    port = int(cascade.profile.tier(VLM).server.url.rsplit(":", 1)[1])
    with ExitStack() as stack:
        # The worker is there first, and waits for its server.
        cascade.until(lambda: all((cascade.folder / f"{name}.ready").exists() for name in ("collector", SCOUT)))
        assert not (cascade.folder / f"{VLM}.ready").exists()
        pids: list[int] = []
        log = cascade.folder / "vllm-1.log"
        stack.enter_context(real_server(python, tiny, NAME, log, port=port, pids=pids))
        cascade.until((cascade.folder / f"{VLM}.ready").exists)

        first = cascade.feed(40)
        cascade.until(lambda: cascade.ended(first))
        climbed = [row for row in cascade.rows(1) if row["tier"] == VLM]
        assert len(climbed) > 20
        assert all(asked(row) for row in climbed)
        assert len({round(vote.p, 6) for row in climbed for vote in row["votes"] if vote.tier == VLM}) > 1

        second = cascade.feed(150, rate=30)
        scored = cascade.tally()["scored"]
        cascade.until(lambda: cascade.tally()["scored"] > scored + 15)
        os.killpg(pids[0], signal.SIGKILL)
        cascade.until(lambda: cascade.ended(second))
        climbed = [row for row in cascade.rows(2) if row["tier"] == VLM]
        voted = sum(map(asked, climbed))
        assert 10 < voted < len(climbed) - 10
        # Those ended with what the scout had said of them.
        assert all([vote.tier for vote in row["votes"]] == [SCOUT] for row in climbed if not asked(row))
        assert cascade.tally()["no_vote_away"] == len(climbed) - voted

        stack.enter_context(real_server(python, tiny, NAME, cascade.folder / "vllm-2.log", port=port))
        # The breaker's pause is 15 s at most; after it the first photo has the server looked at, and waits for that.
        time.sleep(16)
        third = cascade.feed(30)
        cascade.until(lambda: cascade.ended(third))
        climbed = [row for row in cascade.rows(3) if row["tier"] == VLM]
        assert len(climbed) > 15
        assert all(asked(row) for row in climbed)

    journals = [read_journal(p) for p in cascade.folder.glob("journal-*/*") if p.is_file()]
    with VerdictDatabase(cascade.database_url, create=False) as database:
        account = settle_account(journals, database, cascade.ledger, cascade.before)
    assert account.balanced, account.problems
    assert (account.admitted, account.verdicts, account.quarantined) == (220, 220, 0)
