"""The soak: its mechanics on a short one, and that its figures can complain."""

import json
import random
import statistics
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest
import redis
from scipy import stats  # type: ignore[import-untyped]

from configs.errors import ServerError
from ops.account import Account
from ops.soak import slope
from ops.soak.findings import Soak, growth, growth_problems, judged, most
from ops.soak.gauge import Gauge, Held, Sample, held
from ops.soak.residue import residue, too_many
from ops.soak.slope import BLOCKS, slope_of
from tests.ledgers import admit

ROOT = Path(__file__).parents[1]
#: As a soak of 22 minutes takes them: its second half, a sample every 5 s.
AT_S = [660.0 + 5 * i for i in range(132)]


def hanging_together(seed: int, per_h: float, lasting: int) -> list[float]:
    """A process's memory: a trend, and noise of 1 MiB of which a sample keeps nearly all that its neighbour had."""
    dice = random.Random(seed)
    keep = 1 - 1 / lasting
    fresh = (1 - keep**2) ** 0.5
    noise = accumulate((dice.gauss(0, 1) for _ in AT_S), lambda last, new: keep * last + fresh * new)
    return [80 + per_h * at_s / 3600 + wave for at_s, wave in zip(AT_S, noise, strict=True)]


def samples_of(rss_mib: list[float], open_files: int = 20) -> list[Sample]:
    """One process's samples; files rise by open_files - 20 in the second half."""
    middle = len(rss_mib) // 2
    return [
        Sample(5.0 * i, {"first": Held(mib, 20 if i <= middle else open_files, 5)}, used_mib=2.0)
        for i, mib in enumerate(rss_mib)
    ]


@pytest.mark.parametrize("per_h", [0.0, 5.0, 60.0])
def test_a_leak_is_found_to_its_size(per_h: float) -> None:
    """A straight series has its own slope, and no doubt."""
    found = slope_of(AT_S, [80 + per_h * at_s / 3600 for at_s in AT_S])
    assert [found.per_h, found.low, found.high] == pytest.approx([per_h] * 3, abs=1e-6)


@pytest.mark.parametrize("lasting", [1, 3, 6])
def test_the_interval_covers(lasting: int) -> None:
    """Of 400 series whose noise lasts up to 30 s, the interval holds the true slope in 90 % and more, not in all."""
    found = [slope_of(AT_S, hanging_together(seed, 20.0, lasting)) for seed in range(400)]
    covered = sum(one.low <= 20.0 <= one.high for one in found)
    assert 360 <= covered < 400
    assert statistics.fmean(one.per_h for one in found) == pytest.approx(20.0, abs=1.0)


def test_the_quantile_is_students() -> None:
    """The constant is that of Student's distribution for this number of blocks."""
    assert pytest.approx(stats.t.ppf(0.975, BLOCKS - 2), abs=1e-3) == slope._T


def test_too_few_values_are_refused() -> None:
    """A slope of fewer values than blocks is no slope."""
    with pytest.raises(ValueError, match="9 values are too few for 10 blocks"):
        slope_of(AT_S[:9], AT_S[:9])


def test_growth_is_named() -> None:
    """Memory that grows by 12 MiB an hour and files that stay open break their limits; what is flat does not."""
    leaking = samples_of([80 + 12 * 5 * i / 3600 for i in range(264)], open_files=24)
    flat = samples_of([80.0] * 264)

    def complaints(samples: list[Sample]) -> list[str]:
        files = most(samples, lambda held: held.open_files)
        return growth_problems(growth(samples), files, most(samples, lambda held: held.threads))

    assert complaints(leaking) == [
        "first, resident MiB: +12.00 an hour, 5 are allowed",
        "first: 24 open files in the second half, 20 in the first",
    ]
    assert complaints(flat) == []
    assert judged(flat)
    assert not judged(flat[:100])


def test_a_process_that_ended_is_no_sample() -> None:
    """A process that is gone, or ended and not yet reaped, ends the soak instead of counting as 0 MiB."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert held("it", process.pid).threads == 1
    process.kill()
    deadline_s = time.monotonic() + 10
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline_s
    with pytest.raises(ServerError, match=r"process it .* ended"):
        held("it", process.pid)
    process.communicate()
    with pytest.raises(ServerError, match=r"process it .* ended"):
        held("it", process.pid)


def test_the_gauge_asks_the_server(redis_client: redis.Redis) -> None:
    """A megabyte written is seen in the server's figure."""
    gauge = Gauge({}, redis_client)
    before = gauge.sample()
    for i in range(64):
        redis_client.set(str(i), bytes(1 << 14))
    after = gauge.sample()
    assert 1.0 <= after.used_mib - before.used_mib < 2.0
    assert after.at_s > before.at_s


def test_what_must_not_stay_is_named(redis_client: redis.Redis) -> None:
    """A batch that is left, its place, and a source too many are counted; names of queues are Celery's."""
    from routing.ledger import Ledger

    admit(Ledger(redis_client), "s", 8, size=4)
    redis_client.sadd("_kombu.binding.x", "one", "two")
    redis_client.set("plain", "1")
    found = residue(redis_client)
    assert (found["b"].keys, found["celery:_kombu.binding.x"].entries, found["celery:plain"].entries) == (2, 2, 1)
    assert too_many(found, sources=1, scopes=5, tiers=2) == {"b": 2, "ready": 1}
    assert too_many(found, sources=0, scopes=5, tiers=2) == {"b": 2, "ready": 1, "src": 1}


@pytest.mark.faults
def test_a_short_soak(tmp_path: Path) -> None:
    """Real processes, paced; the account balances, the ledger is drained, the result is written and decodes."""
    (tmp_path / "var").mkdir()
    command = [sys.executable, "-m", "ops.soak", "--minutes", "0.2", "--images", "10000", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    found = msgspec.json.decode((tmp_path / "var/soak.json").read_bytes(), type=Soak)
    assert msgspec.convert(json.loads(done.stdout), Soak) == found
    assert found.account == Account(
        admitted=10_000, verdicts=10_000, quarantined=0, lost=0, counted_twice=0, problems=[]
    )
    assert found.broken == []
    assert not found.growth_judged
    assert {row.what for row in found.rows} == {"first", "second", "collector", "producer", "server", "server's data"}
    assert all(row.most > 1 for row in found.rows)
    assert not {"b", "ready", "later", "due", "own", "owners", "ro", "img"} & found.keys.keys()
    # Paced, not as fast as it goes: that would take less than a second.
    assert 0.19 <= found.minutes <= 0.5
