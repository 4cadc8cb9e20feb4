"""The campaign of kills in its short form: it passes on the fleet, and it fails on a fleet that is broken."""

import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from ops.chaos.campaign import Campaign, Settings
from ops.chaos.photos import CUT_EVERY, SCENES, write_photos
from ops.chaos.plan import AT_EACH_WINDOW, SERVER, draw_kills
from ops.chaos.recount import recount
from ops.server import EmbeddedServer
from routing.failpoints import Window
from routing.ledger import Ledger

NAMES = ("collector", "scout-s-0", "feed-0", SERVER)


def test_a_seed_gives_its_kills_in_their_order() -> None:
    """Each named window gets its kills, the rest is shared by all targets, and only the seed decides the order."""
    kills = draw_kills(7, 210, NAMES)
    assert kills == draw_kills(7, 210, NAMES) != draw_kills(8, 210, NAMES)
    counts = Counter(kill.kind for kill in kills)
    assert all(counts[window] == AT_EACH_WINDOW for window in Window)
    shares = [n for kind, n in counts.items() if kind.startswith("random:")]
    assert (sum(counts.values()), len(shares)) == (210, len(NAMES))
    assert max(shares) - min(shares) <= 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The campaign's photos and their labels."""
    folder = tmp_path_factory.mktemp("chaos") / "photos"
    return folder, write_photos(folder)


def test_a_short_campaign_passes(tmp_path: Path, photos: tuple[Path, list[int]]) -> None:
    """A kill at each window and at each process: nothing is lost or twice, and rows and windows equal the recount."""
    folder, labels = photos
    lines: list[str] = []
    # The bound on recovery belongs to a machine that does nothing else.
    settings = Settings(1, 1200, 14, "everysec", recovery_within_s=60)
    result = Campaign(tmp_path / "c", folder, labels, settings, lines.append).run()
    assert result.passed, result.problems
    assert result.admitted == result.verdicts + result.quarantined >= 1200
    assert all(result.kills[window] == 1 for window in Window)
    assert sum(result.kills.values()) == 14
    assert result.audits == 15
    # The cut photos, and nothing else.
    assert result.quarantined == pytest.approx(result.admitted / CUT_EVERY, abs=SCENES / CUT_EVERY)


@pytest.mark.faults
def test_a_campaign_finds_a_broken_fleet(tmp_path: Path, photos: tuple[Path, list[int]]) -> None:
    """A collector that commits before its rows are written loses images to the kill between the two, and it is said."""
    folder, labels = photos
    settings = Settings(1, 600, 14, "everysec")
    result = Campaign(tmp_path / "c", folder, labels, settings, str, module="tests.commit_first").run()
    assert not result.passed
    assert result.lost > 0


def test_the_recount_sees_a_wrong_row_and_a_wrong_cell(tmp_path: Path, server: EmbeddedServer) -> None:
    """A row with another label than its source's, a count too many and a cell that is not its row's are each named."""
    database = tmp_path / "v.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE verdicts (source, position, p, label, tier, origin)")
        connection.executemany(
            "INSERT INTO verdicts VALUES ('s', ?, ?, ?, 'first', 'o')", [(0, 0.9, 1), (1, 0.1, 0), (2, None, 1)]
        )
    with server.address.connect() as client:
        client.flushall()
        ledger = Ledger(client)
        for scope, cells in {"all": "30", "tier:first": "30", "origin:o": "30", "subnet": "30-"}.items():
            client.rpush(f"{{nf}}:win:{scope}", f"{cells}|s:0+{len(cells)}")
            client.hset("{nf}:rings", scope, len(cells))
            client.hset(f"{{nf}}:cnt:{scope}", mapping={cell: cells.count(cell) for cell in cells})
        assert recount(database, ledger, [1, 0, 1]) == []
        (row,) = [problem for problem in recount(database, ledger, [1, 0, 0]) if problem.startswith("row")]
        assert row == "row s:2 has label 1, its source 0"
        client.hincrby("{nf}:cnt:all", "3", 1)
        assert recount(database, ledger, [1, 0, 1]) == ["counter all: 2 of cell 3, rows and labels say 1"]
        client.hincrby("{nf}:cnt:all", "3", -1)
        client.lset("{nf}:win:all", 0, "31|s:0+2")
        assert recount(database, ledger, [1, 0, 1]) == [
            "window all: s:1 stands there as 1, the source's label says 0",
        ]
        client.lset("{nf}:win:all", 0, "03|s:1+1\ns:0+1")
        assert recount(database, ledger, [1, 0, 1]) == ["window all: 2 cells of s are not its last ones in order"]
