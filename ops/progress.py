"""What a running fleet does, per tier: ready, in flight, settled, escalated; images/s, time left, rolling MCC."""

import time
from collections import deque

from msgspec import Struct
from rich.console import Console
from rich.live import Live
from rich.table import Table

from configs.profile import COLLECTOR, Profile
from ops.account import ring_counts
from ops.report import window_of
from ops.report_text import show
from routing.answers import Snapshot
from routing.ledger import Ledger
from workers.collector import OVERALL

#: Without a terminal: a line as often as this.
_LINE_EVERY_S = 2.0
#: Images a second are those of the last seconds.
_RATE_OVER_S = 5.0


class TierProgress(Struct, frozen=True):
    """One tier at one moment, in images."""

    ready: int
    in_flight: int
    settled: int
    escalated: int


class Progress(Struct, frozen=True):
    """A fleet at one moment, in images."""

    admitted: int
    ended: int
    quarantined: int
    in_fleet: int
    stored_bytes: int
    owners: int
    late: int
    tiers: dict[str, TierProgress]
    collector: TierProgress
    mcc: str


def look(ledger: Ledger, profile: Profile) -> Progress:
    """Reads the ledger's counters and the last 1,000 verdicts."""
    names = [tier.name for tier in profile.tiers]
    snapshot = ledger.snapshot(names)
    account = snapshot.account
    verdicts, quarantined = account.get("verdicts", 0), account.get("quarantined", 0)
    return Progress(
        admitted=account.get("admitted", 0),
        ended=verdicts + quarantined,
        quarantined=quarantined,
        in_fleet=snapshot.use.get("items", 0),
        stored_bytes=snapshot.use.get("bytes", 0),
        owners=snapshot.owners,
        late=account.get("late", 0),
        tiers={name: _tier(snapshot, name) for name in names},
        collector=_tier(snapshot, COLLECTOR),
        mcc=show(window_of(ring_counts(ledger.window(OVERALL)))),
    )


def _tier(snapshot: Snapshot, name: str) -> TierProgress:
    use, tally = snapshot.use, snapshot.tallies.get(name, {})
    waiting = use.get(f"ready:{name}", 0) + use.get(f"later:{name}", 0)
    return TierProgress(waiting, use.get(f"held:{name}", 0), tally.get("settled", 0), tally.get("escalated", 0))


class Display:
    """Live on a terminal, a line every few seconds elsewhere.

    Args:
        console: where.
        total: images that the source has; None when nobody knows.
        before: the fleet when the run began; the display shows what came since.
    """

    def __init__(self, console: Console, total: int | None, before: Progress) -> None:
        self._console = console
        self._total = total
        self._before = before
        self._begun_s = time.monotonic()
        self._lined_s = 0.0
        #: (monotonic seconds, images ended): time left follows what is done now, not since the start.
        self._recent: deque[tuple[float, int]] = deque()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if self._live:
            self._live.start()

    def show(self, now: Progress, note: str = "") -> None:
        """Shows the fleet as it is."""
        took_s = time.monotonic() - self._begun_s
        admitted, ended = now.admitted - self._before.admitted, now.ended - self._before.ended
        rate = self._rate(ended)
        left = f"{(self._total - ended) / rate:.0f} s left" if self._total and rate else "time left unknown"
        head = f"{took_s:.0f} s: {admitted} admitted, {ended} ended ({rate:.0f} images/s, {left})"
        if now.quarantined > self._before.quarantined:
            head += f", {now.quarantined - self._before.quarantined} quarantined"
        tail = f"rolling MCC of the last 1,000: {now.mcc}" + (f" {note}" if note else "")
        if self._live:
            table = Table("tier", "ready", "in flight", "settled", "escalated", title=head, caption=tail)
            for name, t in now.tiers.items():
                table.add_row(name, str(t.ready), str(t.in_flight), str(t.settled), str(t.escalated))
            table.add_row(COLLECTOR, str(now.collector.ready), str(now.collector.in_flight), str(ended), "")
            self._live.update(table)
        elif time.monotonic() - self._lined_s > _LINE_EVERY_S:
            self._lined_s = time.monotonic()
            tiers = "; ".join(
                f"{name} {t.ready} ready {t.in_flight} in flight {t.settled} settled {t.escalated} escalated"
                for name, t in now.tiers.items()
            )
            self._console.print(f"{head} | {tiers} | {tail}", soft_wrap=True)

    def _rate(self, ended: int) -> float:
        """Images a second over the last seconds."""
        now_s = time.monotonic()
        self._recent.append((now_s, ended))
        while now_s - self._recent[0][0] > _RATE_OVER_S:
            self._recent.popleft()
        since_s, since = self._recent[0]
        return (ended - since) / (now_s - since_s) if now_s > since_s else 0.0

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self._live:
            self._live.stop()
