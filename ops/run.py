"""The main job, `make run`: a whole fleet on this machine, photos through it, a report, and no process left behind."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis
import structlog
from rich.console import Console

from configs.errors import AccountError, BusyError, DiskError
from configs.memory import served
from configs.profile import Profile, load_profile
from ops.account import baseline, settle_account
from ops.child import Child, Event
from ops.fleet import command, fleet_children, require_engines
from ops.flower import flower_command
from ops.interrupts import Interrupts
from ops.lock import RunLock
from ops.progress import Display, Progress, look
from ops.report import Report, make_report, write_report
from ops.report_text import LOG_WIDTH, print_report
from ops.residency_control import MOVE_S, Residency
from ops.serve import COLLECTOR_STALL_S, DATABASE
from ops.server import EmbeddedServer
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from ops.vllm_children import find_servers, require_wakers
from ops.vllm_lock import starting
from producers.admitted import read_journal
from producers.sources import open_source
from routing.address import ServerAddress, address_from_environment
from routing.command import INTERRUPTED
from routing.ledger import Ledger, new_id
from routing.patience import passing
from routing.server_check import require_server
from workers.verdicts import VerdictDatabase

log = structlog.get_logger(__name__)

REPORT_FILE = Path("var/report.json")
#: Of this run: logs, journal, verdicts, the embedded server's data. Emptied when the next run begins.
RUN_FOLDER = Path("var/run")
PRODUCER = "producer"


def still_s(profile: Profile) -> float:
    """With every photo admitted and nothing moving for so long, what is missing will not come any more.

    Longer than recovery takes: a stalled process ends itself, its lease runs out, another one scores its batches.
    """
    # Each tier that sleeps may wait for the turns of all others.
    turns_s = sum(tier.server.awake_s + MOVE_S for tier in profile.tiers if tier.residency == "sleep")
    stall_s = max(COLLECTOR_STALL_S, *(tier.stall_s for tier in profile.tiers))
    # A question that hangs is no stall: it ends at its own deadline.
    models = profile.models()
    stall_s = max(stall_s, *(tier.server.timeout_s for tier in profile.tiers if served(models[tier.name])), 0.0)
    return 20.0 + profile.delivery.lease_s + stall_s + turns_s


def run(photos: str, profile_name: str, *, limit: int | None, flower_port: int | None) -> int:
    """Runs photos through a fleet of its own.

    Args:
        photos: as producers.sources.open_source takes it.
        profile_name: a profile's name or path.
        limit: photos at most.
        flower_port: where Flower listens; None: without Flower.

    Returns:
        0 when the account balances, 1 when it does not, 130 when it was interrupted (and balances).

    Raises:
        FleetError: something is not as it must be; said before anything is fed.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    profile = load_profile(profile_name)
    require_engines(profile)
    source = open_source(photos, limit)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts().heeded())
        stack.enter_context(RunLock(command=f"natix-fleet run --photos {photos}"))
        address, server = _server(stack, console)
        client = address.connect()
        require_server(client)
        ledger = Ledger(client)
        before = baseline(ledger, profile)
        _require_alone(ledger, profile)
        url = f"sqlite:///{(RUN_FOLDER / 'verdicts.db').absolute()}"
        run_id = new_id()[:8]
        env = {DATABASE: url}
        flower = flower_command(address, flower_port) if flower_port is not None else None
        servers = find_servers(profile, RUN_FOLDER, address)
        stack.enter_context(starting(servers.starts, f"natix-fleet run --profile {profile_name}"))
        require_wakers(profile, servers, embedded=server is not None)
        residency = stack.enter_context(Residency(profile, servers, address.connect, RUN_FOLDER))
        children = fleet_children(
            profile, profile_name, address, RUN_FOLDER, env, flower, servers=servers, residency=residency
        )
        argv = [photos, "--profile", profile_name, "--run", run_id, "--journal", str(RUN_FOLDER / "journal")]
        if limit:
            argv += ["--limit", str(limit)]
        children.append(
            Child(
                name=PRODUCER,
                argv=[*command("feed"), *argv],
                env={**env, "REDIS_URL": address.url},
                log=RUN_FOLDER / "producer.log",
                after=tuple(child.name for child in children if child.name != "flower"),
                lasting=False,
            )
        )
        said = [f"fleet {profile.name!r}: {', '.join(child.name for child in children)}; logs in {RUN_FOLDER}"]
        said += [*servers.notes(), flower.greeting if flower else "", f"photos: {source.note}" if source.note else ""]
        console.print(*filter(None, said), sep="\n")
        supervisor = stack.enter_context(Supervisor(children, interrupts=interrupts))
        residency.tend(supervisor)
        watch = _Watch(
            supervisor,
            server,
            Display(console, source.total, look(ledger, profile)),
            interrupts,
            still_s(profile),
            lambda: residency.tend(supervisor),
        )
        try:
            seconds = watch.until_done(lambda: look(ledger, profile))
        finally:
            watch.display.stop()
        if interrupts.count > 1:
            console.print("interrupted twice: ended at once")
            supervisor.kill()
            return INTERRUPTED
        supervisor.stop()
        # Created when the collector had no time to.
        with VerdictDatabase(url) as database:
            journals = [read_journal(path) for path in sorted((RUN_FOLDER / "journal").glob("*.jsonl"))]
            account = settle_account(journals, database, ledger, before)
            report = make_report(
                account=account,
                before=before,
                journals=journals,
                profile=profile,
                ledger=ledger,
                database=database,
                seconds=seconds,
                spec=photos,
                note=source.note,
            )
    write_report(report, REPORT_FILE)
    print_report(report, console)
    return _status(report, account.balanced, interrupted=interrupts.count > 0)


def _server(stack: ExitStack, console: Console) -> tuple[ServerAddress, EmbeddedServer | None]:
    """The user's server when REDIS_URL names one, else an embedded one with a fresh folder."""
    try:
        shutil.rmtree(RUN_FOLDER, ignore_errors=True)
        RUN_FOLDER.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write {RUN_FOLDER}: {error.strerror}") from error
    if os.environ.get("REDIS_URL") or os.environ.get("REDIS_URL_FILE"):
        address = address_from_environment()
        console.print(f"server: yours, {address.redacted}")
        return address, None
    server = EmbeddedServer(RUN_FOLDER / "server")
    stack.enter_context(server)
    console.print(f"server: embedded, {server.address.redacted}, fsync always")
    return server.address, server


def _require_alone(ledger: Ledger, profile: Profile) -> None:
    """No other fleet may live on the server: its collector would take verdicts into its own database.

    Raises:
        BusyError: a beat moved.
    """
    seen = ledger.beats()
    until_s = time.monotonic() + 2.5 * profile.delivery.beat_s
    # What stands still is left of processes that were killed.
    while seen and time.monotonic() < until_s:
        time.sleep(POLL_INTERVAL_S)
        if any(seen.get(owner) != beat for owner, beat in ledger.beats().items()):
            raise BusyError("a fleet runs on this server: feed it with natix-fleet feed, or stop it first")


def _status(report: Report, balanced: bool, *, interrupted: bool) -> int:
    if not balanced or report.lost or report.counted_twice:
        return AccountError.exit_status
    return INTERRUPTED if interrupted else 0


class _Watch:
    """Watches a run until every admitted photo ended, or will not end any more."""

    def __init__(
        self,
        supervisor: Supervisor,
        server: EmbeddedServer | None,
        display: Display,
        interrupts: Interrupts,
        still_s: float,
        tend: Callable[[], None] = lambda: None,
    ) -> None:
        self.display = display
        self._supervisor = supervisor
        self._server = server
        self._interrupts = interrupts
        self._still_s = still_s
        self._tend = tend

    def until_done(self, look_now: Callable[[], Progress]) -> float:
        """Returns the seconds from the first admitted photo to the last verdict.

        Raises:
            FleetError: a child was given up.
        """
        # Still since: while the server is away nothing can move, and nothing is lost by that.
        began_s = moved_s = still_since_s = time.monotonic()
        first: Progress | None = None
        last: Progress | None = None
        looked_s = 0.0
        asked_to_end = False
        while True:
            if self._interrupts.count and not asked_to_end:
                asked_to_end = True
                self._supervisor.retire(PRODUCER)
            self._poll()
            now_s = time.monotonic()
            if self._interrupts.count > 1:
                return now_s - began_s
            if now_s - looked_s > 0.25:
                looked_s = now_s
                now = self._look(look_now)
                if now is None:
                    still_since_s = time.monotonic()
                    continue
                first = first or now
                if now.admitted == first.admitted:
                    began_s = now_s
                if now != last:
                    moved_s, still_since_s, last = now_s, now_s, now
                fed = self._producer_finished()
                self.display.show(now, "| draining after Ctrl-C, again to end at once" if asked_to_end else "")
                if fed and now.in_fleet == 0:
                    return moved_s - began_s
                if fed and now_s - still_since_s > self._still_s and self._supervisor.all_ready:
                    return moved_s - began_s
            time.sleep(POLL_INTERVAL_S)

    def _look(self, look_now: Callable[[], Progress]) -> Progress | None:
        """None while the server is away: it is started again, or comes back by itself."""
        try:
            return look_now()
        except redis.RedisError as error:
            if not passing(error):
                raise
            log.warning("server does not answer", error=str(error))
            return None

    def _poll(self) -> None:
        if self._server:
            self._server.revive()
        self._tend()
        for event in self._supervisor.poll():
            if event.what in ("exited", "restarts", "given up", "killed") and not _clean_finish(event):
                log.warning("child", name=event.child, what=event.what, detail=event.detail)

    def _producer_finished(self) -> bool:
        return any(state.name == PRODUCER and state.phase == "finished" for state in self._supervisor.states)


def _clean_finish(event: Event) -> bool:
    return event == Event(PRODUCER, "exited", "exit status 0")
