"""A fleet that is broken on purpose: its collector commits in the ledger before its rows are in the database.

A campaign of kills must find out; tests/test_chaos.py says whether it does.
"""

from configs.profile import COLLECTOR
from ops.chaos.process import die_popping
from ops.cli import main
from routing.answers import Claim
from routing.broker import queue_name
from routing.failpoints import Window, failpoint
from routing.messages import decode_verdicts
from workers.collector import CollectorStop


def _commit_first(self: CollectorStop, claim: Claim) -> None:
    rows = [(verdict, batch.gen) for batch in claim.batches for verdict in decode_verdicts(batch.blob)]
    self._commit(claim, claim.batches, [verdict for verdict, _ in rows])
    failpoint(Window.INSERT_COMMIT)
    self._database.write(rows)


if __name__ == "__main__":
    CollectorStop.work = _commit_first  # type: ignore[method-assign]
    die_popping(queue_name(COLLECTOR))
    main()
