"""Why the ledger refuses a verb, and what to do about it. Not errors: everyday answers, each handled by its caller."""

from collections.abc import Iterable


class Refusal(Exception):  # noqa: N818 - a refusal is an answer of the ledger, and what to do about it is the caller's everyday work
    """The ledger refused a verb, and wrote nothing."""


class Zombie(Refusal):
    """Somebody else opened this source since: stop producing it."""


class Misplaced(Refusal):
    """The source stands at ``offset``: go on from there."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the source stands at {offset}")
        self.offset = offset


class Full(Refusal):
    """Admission would break its bound: wait."""

    def __init__(self, items: int, stored_bytes: int) -> None:
        super().__init__(f"{items} items, {stored_bytes} bytes in the fleet")
        self.items = items
        self.stored_bytes = stored_bytes


class Missing(Refusal):
    """The bytes of ``position`` are not in the store (any more): put them there again."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the bytes of position {position} are not in the store")
        self.position = position


class OwnerDead(Refusal):
    """This owner was reaped: drop everything in hand and take a new owner id."""


class Lost(Refusal):
    """``bids`` are somebody else's by now (or settled): settle again without them."""

    def __init__(self, bids: Iterable[str], *, fenced: bool = False) -> None:
        self.bids = frozenset(bids)
        #: Somebody else holds some of them now, and will end them.
        self.fenced = fenced
        super().__init__(f"{len(self.bids)} batches are not this owner's any more")


class OtherProfile(Refusal):
    """The fleet runs another profile."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the fleet runs profile {digest}")
        self.digest = digest
