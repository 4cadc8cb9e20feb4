"""make soak: references at a steady rate through real processes; var/soak.json and a table, status 1 if it grows."""

import shutil
import sys
import time
from pathlib import Path
from typing import Literal

import click
import msgspec
from rich.console import Console

from configs.errors import AccountError, DiskError, ServerError
from ops.account import Account, baseline, settle_account
from ops.bench.processes import cpu_s, started, wait_for_all
from ops.bench.profile import bench_profile
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from ops.serve import DATABASE, READY_FILE
from ops.server import EmbeddedServer
from ops.soak import findings
from ops.soak.findings import Soak
from ops.soak.gauge import Gauge, Sample
from ops.soak.producer import FED, SOURCE
from ops.soak.residue import residue, too_many
from producers.admitted import read_journal
from routing.audit import audit
from routing.command import run_command
from routing.ledger import Ledger
from routing.logs import configure_logging
from workers.verdicts import VerdictDatabase

FOLDER = Path("var/soak")
RESULT = Path("var/soak.json")
#: Two batches a second at the default rate: a tenth of a core. Smaller ones would cost more and show less.
BATCH_ITEMS = 512
#: The most that nothing lost may mean: the server answers when it is on the disk.
FSYNC: Literal["always"] = "always"
#: all, tier:first, tier:second, origin:soak, subnet.
SCOPES = 5
_SAMPLES = 40
_EVERY_S = 5.0
#: How far behind its rate the producer may end.
_LATE_S = 60.0


class Run:
    """One soak on a server of its own."""

    def __init__(self, server: EmbeddedServer, folder: Path, images: int, minutes: float) -> None:
        self._server = server
        self._folder = folder
        self._images = images
        self._minutes = minutes
        self._client = server.address.connect()
        self._ledger = Ledger(self._client)
        self._profile = bench_profile(BATCH_ITEMS)
        self._env = {
            "REDIS_URL": server.url,
            DATABASE: f"sqlite:///{folder / 'verdicts.db'}",
            "NATIX_BENCH_BATCH": str(BATCH_ITEMS),
        }
        self._before = baseline(self._ledger, self._profile)

    def measure(self) -> Soak:
        """Runs it to its end, and the processes too.

        Raises:
            AccountError: references did not arrive.
            ServerError: a process did not start, or ended in the middle.
        """
        rate = self._images / self._minutes / 60
        python = [sys.executable, "-m"]
        arguments = {"folder": self._folder, "images": self._images, "rate": rate, "batch-items": BATCH_ITEMS}
        options = [f"--{name}={value}" for name, value in arguments.items()]
        commands = {name: [*python, "ops.bench.fleet", name] for name in ("first", "second", "collector")}
        with (
            started(commands, self._env, self._folder, READY_FILE) as workers,
            started(
                {"producer": [*python, "ops.soak.producer", *options]}, self._env, self._folder, READY_FILE
            ) as more,
        ):
            pids = dict(zip([*commands, "producer"], [*workers, *more], strict=True)) | {"server": self._server_pid()}
            gauge = Gauge(pids, self._client)
            spent_s = cpu_s(list(pids.values()))
            samples = self._watch(gauge)
            seconds = samples[-1].at_s
            spent_s = cpu_s(list(pids.values())) - spent_s
            wait_for_all(lambda: self._images - self._ledger.snapshot([]).use.get("items", 0), self._images, "soak")
        return self._judge(samples, seconds, spent_s / seconds)

    def _server_pid(self) -> int:
        if self._server.pid is None:
            raise ServerError("the server ended")
        return self._server.pid

    def _watch(self, gauge: Gauge) -> list[Sample]:
        """Samples while the producer feeds."""
        every_s = min(_EVERY_S, self._minutes * 60 / _SAMPLES)
        samples = [gauge.sample()]
        while not (self._folder / FED).exists():
            time.sleep(every_s)
            samples.append(gauge.sample())
            if samples[-1].at_s > self._minutes * 60 + _LATE_S:
                raise AccountError(f"not fed within {samples[-1].at_s:.0f} s: see the logs in {self._folder}")
        return samples

    def _judge(self, samples: list[Sample], seconds: float, cores: float) -> Soak:
        """All processes have ended: what is left, and what it broke."""
        found = audit(self._client)
        keys = residue(self._client)
        account = self._account()
        rows = findings.growth(samples)
        files = findings.most(samples, lambda held: held.open_files)
        threads = findings.most(samples, lambda held: held.threads)
        judged = findings.judged(samples)
        surplus = too_many(keys, sources=1, scopes=SCOPES, tiers=len(self._profile.tiers))
        celery = sum(kind.entries for name, kind in keys.items() if name.startswith("celery:"))
        broken = [
            *(findings.growth_problems(rows, files, threads) if judged else []),
            *found.problems,
            *account.problems,
            *(f"{n} keys {name!r} more than may stay" for name, n in surplus.items()),
        ]
        if account.admitted != self._images or not account.balanced:
            broken.append(f"the account does not balance: {account.admitted} admitted of {self._images}")
        if celery > findings.CELERY_ENTRIES:
            broken.append(f"{celery} entries in Celery's keys, {findings.CELERY_ENTRIES} are allowed")
        return Soak(
            images=self._images,
            minutes=round(seconds / 60, 2),
            images_per_s=round(self._images / seconds, 1),
            cores=round(cores, 3),
            fsync=self._server.fsync,
            account=account,
            rows=rows,
            open_files=files,
            threads=threads,
            keys=keys,
            growth_judged=judged,
            broken=broken,
            samples=samples,
        )

    def _account(self) -> Account:
        with VerdictDatabase(self._env[DATABASE], create=False) as database:
            journals = [read_journal(path) for path in sorted((self._folder / "journal").glob(f"{SOURCE}*"))]
            return settle_account(journals, database, self._ledger, self._before)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=22.0, show_default=True, help="How long it feeds.")
@click.option("--images", type=click.IntRange(1000), default=1_200_000, show_default=True, help="References, evenly.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON, without a table.")
def soak(minutes: float, images: int, as_json: bool) -> None:
    """Feeds references at a steady rate, and looks whether anything grows or stays."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    with RunLock(Path("var/soak.lock"), what="soak"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        with EmbeddedServer(FOLDER / "server", fsync=FSYNC) as server:
            found = Run(server, FOLDER, images, minutes).measure()
    written = msgspec.json.format(msgspec.json.encode(found), indent=2)
    try:
        RESULT.write_bytes(written + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {RESULT}: {error.strerror}") from error
    if as_json:
        click.echo(written)
    else:
        _print(found, console)
    if found.broken:
        sys.exit(AccountError.exit_status)


def _print(found: Soak, console: Console) -> None:
    console.print(findings.table(found))
    if not found.growth_judged:
        console.print("too short for growth to mean something: it is not judged")
    console.print("left on the server: " + ", ".join(f"{k} {v.keys} ({v.entries})" for k, v in found.keys.items()))
    a = found.account
    console.print(f"account: {a.admitted:,} admitted, {a.verdicts:,} verdicts, {a.lost} lost, {a.counted_twice} twice")
    for line in found.broken:
        console.print(f"broken: {line}")


if __name__ == "__main__":
    configure_logging("soak", "warning")
    run_command(soak, "python -m ops.soak")
