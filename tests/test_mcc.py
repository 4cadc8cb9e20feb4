"""Counts, interval and sliding window against scikit-learn, scipy and simulation."""

import math
import random
import time
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from workers.mcc import FN, FP, TN, TP, Counts, RollingMcc, _beta_quantile, cell

#: Comes with scikit-learn; it has no types, and the fleet itself does without it.
beta = import_module("scipy.stats").beta

COUNT = st.integers(0, 10_000_000)


def _of(cells: bytes) -> Counts:
    return Counts(tp=cells.count(TP), tn=cells.count(TN), fp=cells.count(FP), fn=cells.count(FN))


@pytest.mark.parametrize("window", [1, 7, 100, 1000, None])
def test_every_prefix_of_a_stream_equals_sklearn(window: int | None) -> None:
    """After each verdict the window's MCC is scikit-learn's over the same slice, or undefined if a class is missing."""
    rng = random.Random(8)
    labels = [int(rng.random() < 0.3) for _ in range(250)]
    p = [abs(label - (rng.random() > 0.9) * 1.0) * 0.8 + 0.1 for label in labels]
    rolling = RollingMcc(window)
    for end in range(1, len(labels) + 1):
        rolling.extend(bytes([cell(labels[end - 1], p[end - 1])]))
        start = 0 if window is None else max(0, end - window)
        truth, decided = labels[start:end], [int(x > 0.5) for x in p[start:end]]
        assert rolling.counts.n == end - start
        if len(set(truth)) == 2 == len(set(decided)):
            assert rolling.counts.mcc == pytest.approx(matthews_corrcoef(truth, decided), abs=1e-12)
        else:
            assert rolling.counts.mcc is None


@given(st.lists(st.binary(max_size=40).map(lambda raw: bytes(byte % 4 for byte in raw))), st.integers(1, 30))
def test_chunks_of_any_size_slide_like_one_long_list(chunks: list[bytes], window: int) -> None:
    """However a stream is cut into chunks, the window holds exactly its last cells."""
    rolling, everything = RollingMcc(window), b""
    for chunk in chunks:
        rolling.extend(chunk)
        everything += chunk
        assert rolling.counts == _of(everything[-window:])


def test_a_byte_that_is_no_cell_is_refused_and_changes_nothing() -> None:
    """A void's mark among the cells is an error, and none of that chunk is counted."""
    rolling = RollingMcc(10)
    rolling.extend(bytes([TP, TN]))
    with pytest.raises(ValueError, match="not a cell: 45"):
        rolling.extend(bytes([TP]) + b"-")
    assert rolling.counts == Counts(tp=1, tn=1)


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused(window: int) -> None:
    """A window needs room for a cell."""
    with pytest.raises(ValueError, match="at least one"):
        RollingMcc(window)


def test_cells_follow_the_subnets_rounding() -> None:
    """p = 0.5 decides for no roadwork, as numpy's half-to-even does."""
    assert [cell(0, 0.5), cell(0, 0.51), cell(1, 0.5), cell(1, 1.0)] == [TN, FP, FN, TP]
    assert all((cell(1, p) == TP) == (np.round(p) == 1) for p in (0.0, 0.4999999, 0.5, math.nextafter(0.5, 1), 1.0))


def test_an_unlabelled_verdict_has_no_cell() -> None:
    """Without a label there is nothing to count."""
    with pytest.raises(ValueError, match="label"):
        cell(-1, 0.9)


@pytest.mark.parametrize("counts", [Counts(), Counts(tp=9), Counts(tn=9), Counts(tp=5, fn=5), Counts(fp=3, tn=4)])
def test_one_class_has_no_correlation(counts: Counts) -> None:
    """Labels or decisions all alike: no MCC and no interval, rather than 0."""
    assert counts.mcc is None
    assert counts.interval() is None


@given(COUNT, COUNT, COUNT, COUNT, st.floats(0.5, 0.999))
def test_an_interval_contains_its_value_and_is_never_a_point(tp: int, tn: int, fp: int, fn: int, level: float) -> None:
    """For any counts: -1 <= low <= MCC <= high <= 1, low < high."""
    counts = Counts(tp, tn, fp, fn)
    interval = counts.interval(level)
    if counts.mcc is None:
        assert interval is None
        return
    assert interval is not None
    assert -1 <= interval[0] <= counts.mcc <= interval[1] <= 1
    assert interval[0] < interval[1]


def test_a_perfect_window_does_not_claim_certainty() -> None:
    """100 right of 100 is an MCC of 1, and says only that it is above 0.85; 10,000 right of 10,000 say more."""
    low, high = Counts(tp=50, tn=50).interval() or (0, 0)
    assert (Counts(tp=50, tn=50).mcc, high) == (1.0, 1.0)
    assert 0.84 < low < 0.87
    assert (Counts(tp=5000, tn=5000).interval() or (0, 0))[0] > 0.998


def test_a_window_that_is_always_wrong_mirrors_a_perfect_one() -> None:
    """Swapping every decision swaps the interval around 0."""
    low, high = Counts(tp=60, tn=40).interval() or (0, 0)
    assert Counts(fp=40, fn=60).interval() == pytest.approx((-high, -low))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    """95 instead of 0.95 is a mistake, not a wide interval."""
    with pytest.raises(ValueError, match="level"):
        Counts(1, 1, 1, 1).interval(level)


@pytest.mark.parametrize(("tp", "tn", "fp", "fn"), [(45, 44, 6, 5), (8, 85, 5, 2), (1, 1, 1, 1), (400, 20, 30, 9)])
def test_the_variance_is_that_of_the_delta_method(tp: int, tn: int, fp: int, fn: int) -> None:
    """The closed form equals gradient' (diag(p) - pp') gradient / n with a numeric gradient."""
    cells = np.array([tp, tn, fp, fn], dtype=float)
    n = cells.sum()
    p = cells / n

    def mcc(q: np.ndarray) -> float:
        square = (q[0] + q[2]) * (q[0] + q[3]) * (q[1] + q[2]) * (q[1] + q[3])
        return float((q[0] * q[1] - q[2] * q[3]) / math.sqrt(square))

    step = 1e-6
    gradient = np.array([(mcc(p + step * unit) - mcc(p - step * unit)) / (2 * step) for unit in np.eye(4)])
    numeric = gradient @ (np.diag(p) - np.outer(p, p)) @ gradient / n
    assert Counts(tp, tn, fp, fn)._variance(mcc(p)) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "prevalence", "tpr", "tnr"),
    [
        (100, 0.5, 0.9, 0.9),
        (100, 0.5, 0.97, 0.97),
        (100, 0.1, 0.8, 0.95),
        (30, 0.5, 0.9, 0.9),
        (1000, 0.5, 0.999, 0.999),
    ],
)
def test_the_interval_covers_the_true_value(n: int, prevalence: float, tpr: float, tnr: float) -> None:
    """A nominal 95 % interval holds the true MCC in more than 90 % of 600 simulated windows, empty cells included."""
    flagged = prevalence * tpr + (1 - prevalence) * (1 - tnr)
    true = (tpr + tnr - 1) * math.sqrt(prevalence * (1 - prevalence) / (flagged * (1 - flagged)))
    odds = [prevalence * tpr, (1 - prevalence) * tnr, (1 - prevalence) * (1 - tnr), prevalence * (1 - tpr)]
    windows = np.random.default_rng(5).multinomial(n, odds, size=600).tolist()
    intervals = [interval for window in windows if (interval := Counts(*window).interval())]
    covered = sum(low <= true <= high for low, high in intervals) / len(intervals)
    assert covered > 0.90


def test_beta_quantiles_equal_scipys() -> None:
    """Within 1e-9 from one verdict to ten million, at both ends and in the middle."""
    rng = random.Random(3)
    for _ in range(200):
        n = round(10 ** rng.uniform(0.5, 7))
        hits = rng.choice([1, n - 1, rng.randint(1, n - 1), math.ceil(n * 0.02)])
        for q in (0.0005, 0.025, 0.16):
            assert _beta_quantile(q, hits, n - hits + 1) == pytest.approx(beta.ppf(q, hits, n - hits + 1), abs=1e-9)


def test_ten_million_verdicts_cost_milliseconds() -> None:
    """An interval over ten million costs under 50 ms of CPU, sliding a million cells in under 200 ms."""
    started_s = time.process_time()
    Counts(tp=4_990_000, tn=5_000_000, fp=0, fn=10_000).interval()
    assert time.process_time() - started_s < 0.05
    rolling, cells = RollingMcc(1000), bytes(range(4)) * 64
    started_s = time.process_time()
    for _ in range(1_000_000 // len(cells)):
        rolling.extend(cells)
    assert time.process_time() - started_s < 0.2
