"""Replies that never come, and nobody dies: kills would hide whoever waits for ever."""

from pathlib import Path

import pytest
import redis
from msgspec.structs import replace

from ops.server import EmbeddedServer
from routing.address import parse_address
from routing.audit import audit
from routing.ledger import Ledger
from tests.ledgers import field
from tests.lossy_proxy import OTHER, LossyProxy
from tests.small_fleet import FIRST, Faults, SmallFleet, small_profile

#: Verbs that are rare lose more of their replies.
ODDS = {
    "open": 0.5,
    "admit": 0.2,
    "close": 0.5,
    "enlist": 0.5,
    "claim": 0.1,
    "mark": 0.4,
    "settle": 0.3,
    "commit": 0.3,
    "heartbeat": 0.2,
    "tick": 0.2,
    OTHER: 0.002,
}
OFTEN = ("admit", "claim", "mark", "settle", "commit", "heartbeat", "tick")


@pytest.mark.faults
def test_lost_replies_cost_nothing_and_nobody_waits_for_ever(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """Expects a fleet whose every verb loses replies, claims for so long that they are given up, to drain."""
    patient = small_profile()
    # What redis-py asks again takes seconds at worst: neither a stall nor a silence.
    profile = small_profile(
        delivery=replace(patient.delivery, lease_s=8.0),
        tiers=tuple(replace(tier, stall_s=30.0) for tier in patient.tiers),
    )
    faults = {FIRST: Faults(raises=(7,))}
    with LossyProxy(server, ODDS) as proxy, SmallFleet(tmp_path, server, profile, faults, url=proxy.url) as fleet:
        pids = {name: fleet.pid(name) for name in ("first", "second", "collector")}
        direct = fleet.ledger
        with parse_address(proxy.url).connect() as lossy:
            fleet.ledger = Ledger(lossy)
            fleet.feed("a", 1000)
            proxy.silenced = frozenset({"claim"})
            fleet.feed("b", 1000)
        fleet.ledger = direct
        # redis-py asks again under the same token; only when it has given up is a claim forgotten, and taken back.
        fleet.until(lambda: field(redis_client, "acct", "reconciled") > 0)
        proxy.silenced = frozenset()
        fleet.until(fleet.done, within_s=90)
        account = fleet.account()
        assert {name: fleet.pid(name) for name in pids} == pids, "somebody died"
    assert min(proxy.lost[verb] for verb in OFTEN) >= 4, proxy.lost
    assert field(redis_client, "acct", "reaped") == 0
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (2000, 0, 0)
    audit(redis_client).raise_for_problems()
