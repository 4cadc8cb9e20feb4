"""Each window of routing.failpoints, armed once on a real fleet: the process dies there, and it costs nothing."""

from pathlib import Path

import pytest
import redis

from ops.server import EmbeddedServer
from routing.audit import audit
from routing.failpoints import VARIABLE, Window
from tests.small_fleet import SmallFleet

IN_WORKERS = (Window.CLAIM_SETTLE, Window.SETTLE_DOORBELL, Window.IN_TRANSACTION, Window.INSERT_COMMIT)


@pytest.mark.faults
def test_a_kill_in_each_window_of_the_workers_costs_nothing(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """Armed one after another under load, each kills one process; the account balances, the ledger is sound."""
    armed = tmp_path / "armed"
    armed.mkdir()
    with SmallFleet(tmp_path, server, env={VARIABLE: str(armed)}) as fleet:
        for window in IN_WORKERS:
            (armed / window).touch()
            fleet.feed(f"s-{window}", 500)
            fleet.until(lambda window=window: not (armed / window).exists() and fleet.done())  # type: ignore[misc]
            audit(redis_client).raise_for_problems()
        account = fleet.account()
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (2000, 0, 0)
    # Each fired once: renamed to its window and the pid that died.
    assert sorted(path.name.split(".")[0] for path in armed.iterdir()) == sorted(IN_WORKERS)
