"""How long until the work that a killed process held is at work again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from msgspec import Struct

from routing.ledger import PREFIX


class Death(Struct):
    """A killed process of the fleet that held batches."""

    name: str
    owner: str
    at_s: float
    #: Claims of each batch that it held, when it died.
    held: dict[str, int]
    #: Another process of its stop, or the server, was killed before it had recovered.
    disturbed: bool = False

    @property
    def stop(self) -> str:
        """Its tier, or the collector: "scout-s" of the worker "scout-s-1"."""
        return self.name.rstrip("0123456789").rstrip("-")


class Recoveries:
    """Follows deaths until every batch that the dead held was claimed by another, or is settled.

    Args:
        server: where the ledger is.
        folder: the ready files: NAME.ready holds a process's pid and its owner id.
    """

    def __init__(self, server: redis.Redis, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._owners: dict[int, str] = {}
        self._open: list[Death] = []
        #: Seconds of deaths in whose recovery nothing else of that stop was killed, nor the server; and of all others.
        self.undisturbed_s: list[float] = []
        self.disturbed_s: list[float] = []

    def notice(self, pids: Mapping[str, int]) -> None:
        """Takes down which owner a living process is, by its ready file."""
        for name, pid in pids.items():
            if pid in self._owners:
                continue
            try:
                said, owner = (self._folder / f"{name}.ready").read_text().split()
            except (OSError, ValueError):
                continue
            if int(said) == pid:
                self._owners[pid] = owner

    def died(self, name: str, pid: int, now_s: float) -> None:
        """A process was killed; nothing to follow if it was not ready yet, or held nothing."""
        owner = self._owners.pop(pid, None)
        if owner is None:
            return
        held: Any = self._server.hkeys(f"{PREFIX}own:{owner}")
        claims = self._claims([bid.decode() for bid in held])
        new = Death(name, owner, now_s, {bid: n for bid, n in claims.items() if n is not None})
        for death in self._open:
            if death.stop == new.stop:
                death.disturbed = new.disturbed = True
        if new.held:
            self._open.append(new)

    def server_died(self) -> None:
        """Whoever was recovering waits for it."""
        for death in self._open:
            death.disturbed = True

    def look(self, now_s: float) -> None:
        """Closes those that have recovered."""
        for death in list(self._open):
            claims = self._claims(list(death.held))
            if any(claims[bid] == n for bid, n in death.held.items()):
                continue
            self._open.remove(death)
            (self.disturbed_s if death.disturbed else self.undisturbed_s).append(now_s - death.at_s)

    def _claims(self, bids: list[str]) -> dict[str, int | None]:
        pipe = self._server.pipeline(transaction=False)
        for bid in bids:
            pipe.hget(f"{PREFIX}b:{bid}", "claims")
        return {bid: None if n is None else int(n) for bid, n in zip(bids, pipe.execute(), strict=True)}
