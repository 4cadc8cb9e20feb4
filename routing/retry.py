"""Which failures of a server redis-py tries again, how often, and until when."""

import math
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

#: Five retries, up to 0.2, 0.4, 0.8, 1.6 and 2 s apart: a server that restarts is seen through, an absent one is not.
RETRIES, RETRY_BASE_S, RETRY_CAP_S = 5, 0.1, 2.0
#: What redis-py keeps of the ssl module's error.
CERTIFICATE_REFUSED = "CERTIFICATE_VERIFY_FAILED"


class ServerRetry(Retry):
    """The retries above; a refused login or certificate is an answer, not a failure to connect: it is not tried again.

    Args:
        within_s: from now on no retry begins later than this. Without it a peer that takes connections and says
            nothing is waited for, reply timeout after reply timeout, for two minutes.
    """

    def __init__(self, within_s: float = math.inf) -> None:
        super().__init__(ExponentialWithJitterBackoff(base=RETRY_BASE_S, cap=RETRY_CAP_S), RETRIES)
        self._until_s = time.monotonic() + within_s

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """As Retry's; ``is_retryable`` is asked after the two conditions above."""

        def may_heal(error: Exception) -> bool:
            refused = isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.AuthorizationError)
            refused |= CERTIFICATE_REFUSED in str(error)
            in_time = time.monotonic() < self._until_s
            return in_time and not refused and (is_retryable is None or is_retryable(error))

        return super().call_with_retry(do, fail, may_heal, with_failure_count)
