"""Sleeping and waking: looks at what waits in the ledger, asks ops.residency who is to be awake, and sees to it.

A served tier sleeps in its server: weights in host memory, by vLLM's dev endpoints, and only of servers on this
machine's loopback interface. A tier of the fleet's own engines sleeps by not running. One thread looks and decides;
each call of a server, which may take a minute, has a thread of its own. What concerns the supervisor happens in
``tend``, in the supervisor's own thread.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx2
import redis
import structlog

from configs.errors import ServerError
from configs.profile import Profile
from ops.residency import Moves, choose
from ops.sleepers import sleepers
from ops.sleeping_tier import AGAIN_S, SleepingTier, worker_names
from ops.supervisor import Supervisor
from ops.vllm_children import Servers
from ops.wakes import Wakes
from routing.ledger import PREFIX
from routing.patience import passing
from workers.rest import LOOK_S as REST_LOOK_S
from workers.rest import in_hand, rest_key, sleeping, this_host

if TYPE_CHECKING:
    from ops.child import ChildState

log = structlog.get_logger(__name__)

LOOK_S = 0.25
#: A tier that is told to rest does so until nobody has said so for this long.
REST_MS = 10_000
#: A server that sleeps or wakes has so long for it: up to 130 GB go over a PCIe bus.
MOVE_S = 300.0
_ANSWER_S = 2.0
_BLIND = "cannot see what waits for the tiers that sleep"
#: So many calls in a row that a server does not follow: it is ended, and comes back.
_REFUSALS = 3


class Residency:
    """The tiers of a profile that sleep.

    Use it as a context manager, and call ``tend`` at every poll, before the first one too.

    Args:
        profile: the fleet.
        servers: of its tiers, where they run under this supervisor, or stand already.
        connect: the ledger's server, once it is known.
        folder: where the seconds of each wake are kept.
        workers: whether the supervisor has the tiers' workers too.
        host: where its servers are, instead of this one.

    Raises:
        ConfigError: a tier cannot sleep here.
    """

    def __init__(
        self,
        profile: Profile,
        servers: Servers,
        connect: Callable[[], redis.Redis | None],
        folder: Path,
        *,
        workers: bool = True,
        host: str = "",
    ) -> None:
        self._host = host or this_host()
        self._connect = connect
        self._server: redis.Redis | None = None
        #: The ledger could not be read, and this was said.
        self._blind = False
        self._client = httpx2.Client(timeout=_ANSWER_S, trust_env=False)
        self._wakes = Wakes(folder)
        #: Of what the tiers' attributes say; never held over a call. The other one: of the keys that tell workers.
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._ending = threading.Event()
        self._states: dict[str, ChildState] = {}
        self._tiers = {one.tier.name: one for one in sleepers(profile, servers, self._client, workers=workers)}
        self._thread = threading.Thread(target=self._live, name="residency", daemon=True)

    def __contains__(self, tier: str) -> bool:
        return tier in self._tiers

    def may_start(self, tier: str) -> bool:
        """Whether a tier's server may start now; asked by the supervisor when it is due."""
        with self._lock:
            one = self._tiers[tier]
            one.due_s = time.monotonic()
            return one.leave is not None

    def tend(self, supervisor: Supervisor) -> None:
        """Takes what the supervisor knows, gives what it is to do."""
        if not self._tiers:
            return
        with self._lock:
            self._states = {state.name: state for state in supervisor.states}
            useless = [one for one in self._tiers.values() if self._useless(one, time.monotonic())]
            for one in useless:
                one.refusals = 0
            own = {name: one.wanted for one in self._tiers.values() if not one.url for name in worker_names(one.tier)}
        for one in useless:
            supervisor.end(one.child, "it neither sleeps nor wakes")
        for name, wanted in own.items():
            (supervisor.resume if wanted else supervisor.pause)(name)
        if not self._thread.is_alive() and not self._ending.is_set():
            self._thread.start()

    @staticmethod
    def _useless(one: SleepingTier, now_s: float) -> bool:
        """Whether its server follows no call, and nobody would ever get its device."""
        # After a call in vain, where it says not even whether it sleeps, no other call is made.
        silent = one.place == "moving" and not one.calling and now_s >= one.not_before_s + 2 * AGAIN_S
        return bool(one.child) and (one.refusals >= _REFUSALS or (one.refusals > 0 and silent))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Decides nothing any more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(2 * _ANSWER_S)
        if not any(one.calling for one in self._tiers.values()):
            self._client.close()

    def _live(self) -> None:
        while not self._ending.wait(LOOK_S):
            try:
                self._step()
                self._blind = False
            except redis.RedisError as error:
                # Whoever comes back may have another address. Nothing is claimed meanwhile either.
                self._server = None
                if not self._blind:
                    log.exception(_BLIND) if not passing(error) else log.warning(_BLIND, error=str(error))
                self._blind = True
                self._ending.wait(1.0)
            except Exception:
                # Without it no tier would wake any more.
                log.exception("sleeping and waking failed, goes on")
                self._ending.wait(1.0)

    def _step(self) -> None:
        waiting = self._waiting()
        words = {name: sleeping(self._client, one.url) for name, one in self._tiers.items() if self._answers(one)}
        now_s = time.monotonic()
        with self._lock:
            for name, one in self._tiers.items():
                if not one.calling and name in words:
                    one.asleep = words[name]
                before, wanted, took_s = one.place, one.wanted, now_s - one.began_s
                one.settle(self._states, now_s)
                if wanted and not one.wanted:
                    log.error("a tier's own processes do not come up, others have its device first", tier=name)
                one.waits(waiting.get(name, 0), now_s)
                if not one.url and before == "moving" and one.place in {"awake", "asleep"} and one.began_s > 0:
                    self._wakes.note(name, "wake" if one.place == "awake" else "sleep", took_s)
                    # What starts again of itself is no move.
                    one.began_s = -math.inf
            moves = choose([one.seen(now_s) for one in self._tiers.values()], now_s)
            self._begin(moves, now_s)
        self._tell()

    def _answers(self, one: SleepingTier) -> bool:
        if not one.url or one.calling:
            return False
        state = self._states.get(one.child)
        return not one.child or (state is not None and state.phase == "ready")

    def _ledger(self) -> redis.Redis | None:
        # Both threads' calls may forget it.
        server = self._server = self._server or self._connect()
        return server

    def _waiting(self) -> dict[str, int]:
        """Items that wait for each tier, by the ledger; empty: it is not known yet."""
        server = self._ledger()
        if server is None:
            return {}
        fields = [f"{kind}:{name}" for kind in ("ready", "later") for name in self._tiers]
        found: Sequence[bytes | None] = server.hmget(PREFIX + "use", fields)  # type: ignore[assignment]
        numbers = [int(value or 0) for value in found]
        return {name: sum(numbers[i :: len(self._tiers)]) for i, name in enumerate(self._tiers)}

    def _begin(self, moves: Moves, now_s: float) -> None:
        for name in moves.wake:
            one = self._tiers[name]
            if one.place == "off":
                one.leave = self._states[one.child].restarts
                one.place = "moving"
            else:
                self._move(one, now_s, wake=True)
        for name in moves.sleep:
            self._move(self._tiers[name], now_s, wake=False)

    def _move(self, one: SleepingTier, now_s: float, *, wake: bool) -> None:
        one.place, one.since_s, one.began_s = "moving", now_s, now_s
        if not one.url:
            one.wanted = wake
            return
        one.calling = True
        name = f"{'wake' if wake else 'sleep'}-{one.tier.name}"
        threading.Thread(target=self._call, args=(one, wake), name=name, daemon=True).start()

    def _call(self, one: SleepingTier, wake: bool) -> None:
        begun_s = time.monotonic()
        try:
            if wake:
                self._post(one, "/wake_up", asleep=False)
            else:
                self._quiet(one)
                begun_s = time.monotonic()
                # In flight is only what others than the tier's workers asked: it is answered first.
                self._post(one, "/sleep?level=1&mode=wait", asleep=True)
            self._wakes.note(one.tier.name, "wake" if wake else "sleep", time.monotonic() - begun_s)
            one.refusals = 0
        except (httpx2.RequestError, redis.RedisError, ServerError) as error:
            one.not_before_s = time.monotonic() + AGAIN_S
            # The ledger's absence is no fault of the server.
            one.refusals += not isinstance(error, redis.RedisError)
            if not wake:
                # Awake it would be told again at once.
                self._ending.wait(AGAIN_S)
            log.error("a server neither sleeps nor wakes", tier=one.tier.name, error=str(error))  # noqa: TRY400
        finally:
            # Its own word says where it is now, at the next look.
            with self._lock:
                one.calling, one.asleep = False, None

    def _quiet(self, one: SleepingTier) -> None:
        """Tells the tier's workers to claim nothing, and waits until they have nothing in hand, but not for ever."""
        with self._lock:
            one.rests = True
        self._tell()
        until_s = time.monotonic() + one.tier.server.timeout_s
        time.sleep(2 * REST_LOOK_S)
        # The ledger does not say on which host an owner is. Those of this one claim nothing any more: theirs is among
        # what is in hand now. What other hosts claim from here on is not waited for.
        held = self._in_hand(one)
        while held and time.monotonic() < until_s and not self._ending.is_set():
            time.sleep(REST_LOOK_S)
            held &= self._in_hand(one)

    def _in_hand(self, one: SleepingTier) -> set[tuple[bytes, bytes, bytes]]:
        server = self._ledger()
        return in_hand(server, one.tier.name) if server else set()

    def _post(self, one: SleepingTier, path: str, *, asleep: bool) -> None:
        reply = self._client.post(one.url + path, timeout=MOVE_S)
        if reply.status_code != httpx2.codes.OK:
            raise ServerError(f"{one.url}{path}: status {reply.status_code}: {reply.text[:200]}")
        if sleeping(self._client, one.url) is not asleep:
            raise ServerError(f"{one.url}{path}: done, and yet it {'does not sleep' if asleep else 'sleeps'}")

    def _tell(self) -> None:
        """The workers, by keys that go by themselves when nobody renews them."""
        with self._telling:
            server = self._server
            if server is None:
                return
            for name, one in self._tiers.items():
                with self._lock:
                    was = one.rests
                    if not one.calling and one.place in {"asleep", "awake", "away", "off"}:
                        one.rests = bool(one.url) and one.place == "asleep"
                    rests = one.rests
                if rests:
                    server.set(rest_key(name, self._host), 1, px=REST_MS)
                elif was:
                    server.delete(rest_key(name, self._host))
