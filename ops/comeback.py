"""What becomes of a child whose process ended by itself: it is started again after a while, or it is given up."""

import random
import signal

from configs.errors import BusyError, ConfigError, DiskError, ServerError, UsageError
from ops.child import Backoff
from ops.running import Running

#: A mistake in the configuration does not heal by trying again.
HOPELESS = {UsageError.exit_status, ConfigError.exit_status}
#: A server that is away comes back, and who is busy ends.
PASSING = {ServerError.exit_status, BusyError.exit_status}


def given_up(running: Running, backoff: Backoff, now: float, *, was_ready: bool) -> tuple[str, int | None] | None:
    """Why a child is not started again, and its own exit status where that says more than "a child failed".

    None: it is started again. A failed start is noted.
    """
    child, status = running.child, running.last_exit
    if not child.lasting and status is not None and status > 0 and status not in PASSING:
        return f"{child.name} failed", status
    if was_ready and now - running.started >= backoff.steady_s:
        running.failures = 0
    # One that was ready before waits for its server, for space on its disk, and for its profile to be mended.
    heals = running.proven and (child.endless or status in PASSING | HOPELESS | {DiskError.exit_status})
    if was_ready or heals:
        return None
    late = status == -signal.SIGKILL and now - running.started > child.ready_within_s
    # A start that was broken off took all its time, and so did those before it.
    within_s = backoff.give_up_exits * (child.ready_within_s + backoff.cap_s) if late else backoff.give_up_within_s
    running.failed_starts = [at for at in running.failed_starts if now - at < within_s]
    running.failed_starts.append(now)
    if status in HOPELESS or child.endless or len(running.failed_starts) >= backoff.give_up_exits:
        starts = f"{len(running.failed_starts)} time{'s' * (len(running.failed_starts) > 1)}"
        own = status if status in HOPELESS or not child.lasting else None
        if late:
            return f"{child.name} was not ready within {child.ready_within_s:g} s, {starts}", own
        return f"{child.name} ended before it was ready, {starts}", own
    return None


def delay_s(running: Running, backoff: Backoff) -> float:
    """How long a child that is started again waits for it; counted."""
    # By the exponent's bound: an endless child may fail more often than a float has exponents.
    longest_s = min(backoff.cap_s, backoff.base_s * 2.0 ** min(running.failures, 30))
    running.failures += 1
    running.restarts += 1
    # Children that died together must not come back in step.
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
