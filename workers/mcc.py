"""Matthews correlation (MCC) over windows of verdicts: counts, a confidence interval, a sliding window.

A cell is one byte, what one labelled verdict turned out to be: 2 * label + decision.
"""

import math
from statistics import NormalDist

from msgspec import Struct

TN, FP, FN, TP = range(4)

#: A place of a ring that holds no cell yet.
_EMPTY = 255


def cell(label: int, p: float) -> int:
    """The cell of one labelled verdict.

    The decision is p > 0.5: the subnet rounds half to even, so 0.5 itself means no roadwork.

    Args:
        label: 1 roadwork, 0 none.
        p: P(roadwork) in [0, 1].

    Returns:
        TN, FP, FN or TP.

    Raises:
        ValueError: the label is neither 0 nor 1.
    """
    if label not in (0, 1):
        raise ValueError(f"a cell needs a label of 0 or 1, not {label}")
    return 2 * label + (p > 0.5)


class Counts(Struct, frozen=True):
    """A confusion matrix of labelled verdicts; every count is >= 0."""

    tp: int = 0
    tn: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def n(self) -> int:
        """The support: labelled verdicts counted."""
        return self.tp + self.tn + self.fp + self.fn

    @property
    def mcc(self) -> float | None:
        """Matthews correlation in [-1, 1]; None while labels or decisions are all of one class: no correlation exists.

        Source: B. W. Matthews, Biochimica et Biophysica Acta 405, 1975. Where it is undefined scikit-learn says 0.0.
        """
        tp, tn, fp, fn = self.tp, self.tn, self.fp, self.fn
        square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        if square == 0:
            return None
        return max(-1.0, min(1.0, (tp * tn - fp * fn) / math.sqrt(square)))

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """A confidence interval of the MCC: contains it, lies in [-1, 1], is never of zero width.

        Fisher's z with the delta-method variance, from Itaya, Tamura, Hayashi and Yamamoto, Asymptotic Properties of
        Matthews Correlation Coefficient, arXiv 2405.12622 (the variance is that of phi in Bishop, Fienberg and Holland,
        1975). That variance vanishes when every decision is right, so with an empty cell the bounds are those of the
        true positive and true negative rates (Clopper and Pearson, 1934), put together at the window's prevalence:
        the MCC grows in either rate.

        Args:
            level: wanted coverage, strictly between 0 and 1.

        Returns:
            (low, high); None where the MCC is undefined.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"a confidence level lies strictly between 0 and 1, not {level}")
        mcc = self.mcc
        if mcc is None:
            return None
        if 0 in (self.tp, self.tn, self.fp, self.fn):
            tail = (1 - level) / 2
            positives, negatives = self.tp + self.fn, self.tn + self.fp
            low = _mcc_at(
                positives, _rate_low(self.tp, positives, tail), negatives, _rate_low(self.tn, negatives, tail)
            )
            high = _mcc_at(
                positives, 1 - _rate_low(self.fn, positives, tail), negatives, 1 - _rate_low(self.fp, negatives, tail)
            )
        else:
            half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(self._variance(mcc)) / (1 - mcc * mcc)
            low, high = math.tanh(math.atanh(mcc) - half), math.tanh(math.atanh(mcc) + half)
        # Rounding alone could leave the value outside by its last digit.
        return max(-1.0, min(low, mcc)), min(1.0, max(high, mcc))

    def _variance(self, mcc: float) -> float:
        """The delta-method variance of the MCC; no cell may be empty."""
        n = self.n
        r1, c1 = (self.tp + self.fn) / n, (self.tp + self.fp) / n
        r0, c0 = (self.tn + self.fp) / n, (self.tn + self.fn) / n
        rows, columns = (r1 - r0) / math.sqrt(r1 * r0), (c1 - c0) / math.sqrt(c1 * c0)
        spread = 1 - mcc**2 + mcc * (1 + mcc**2 / 2) * rows * columns - 0.75 * mcc**2 * (rows**2 + columns**2)
        return spread / n


class RollingMcc:
    """The counts of the last ``window`` cells, in the order in which they are handed in.

    Args:
        window: cells it looks back on, at least 1; None: all.

    Raises:
        ValueError: the window is under 1.
    """

    def __init__(self, window: int | None) -> None:
        if window is not None and window < 1:
            raise ValueError(f"a window holds at least one cell, not {window}")
        self.window = window
        self._ring = bytearray([_EMPTY]) * (window or 0)
        self._next = 0
        self._cells = [0, 0, 0, 0]

    def extend(self, cells: bytes) -> None:
        """Takes cells, oldest first; each pushes the oldest out once the window is full. Amortised O(1) a cell.

        Raises:
            ValueError: a byte is no cell; nothing was taken.
        """
        entering = [cells.count(kind) for kind in range(4)]
        if sum(entering) != len(cells):
            raise ValueError(f"not a cell: {next(byte for byte in cells if byte > TP)}; cells are 0 to {TP}")
        if self.window is None:
            self._cells = [have + more for have, more in zip(self._cells, entering, strict=True)]
        elif len(cells) >= self.window:
            self._ring[:] = cells[-self.window :]
            self._next = 0
            self._cells = [self._ring.count(kind) for kind in range(4)]
        else:
            end = self._next + len(cells)
            over = max(0, end - self.window)
            leaving = self._ring[self._next : end] + self._ring[:over]
            for kind in range(4):
                self._cells[kind] += entering[kind] - leaving.count(kind)
            self._ring[self._next : end] = cells[: len(cells) - over]
            self._ring[:over] = cells[len(cells) - over :]
            self._next = end % self.window

    @property
    def counts(self) -> Counts:
        """What is in the window now."""
        tn, fp, fn, tp = self._cells
        return Counts(tp=tp, tn=tn, fp=fp, fn=fn)


def _mcc_at(positives: int, tpr: float, negatives: int, tnr: float) -> float:
    """The MCC of a classifier with these rates at this prevalence."""
    prevalence = positives / (positives + negatives)
    flagged = prevalence * tpr + (1 - prevalence) * (1 - tnr)
    return (tpr + tnr - 1) * math.sqrt(prevalence * (1 - prevalence) / (flagged * (1 - flagged)))


def _rate_low(hits: int, n: int, tail: float) -> float:
    """The Clopper-Pearson lower bound of hits / n: the rate at which so many hits or more have probability ``tail``."""
    if hits == 0:
        return 0.0
    if hits == n:
        return float(tail ** (1 / n))
    return _beta_quantile(tail, hits, n - hits + 1)


def _beta_quantile(q: float, a: int, b: int) -> float:
    """The x with I_x(a, b) = q, accurate to 1e-12: Newton's steps, halving where one would leave the bracket."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        value, density = _beta(x, a, b)
        if value < q:
            low = x
        else:
            high = x
        step = (value - q) / density if density > 0 else math.inf
        closer = x - step if low < x - step < high else (low + high) / 2
        if abs(closer - x) <= 1e-13 * x:
            return closer
        x = closer
    return x


def _beta(x: float, a: int, b: int) -> tuple[float, float]:
    """The regularised incomplete beta function I_x(a, b), and its density at x.

    Lentz's method on the continued fraction DLMF 8.17.22, as in Numerical Recipes (3rd ed., 6.4); it takes about
    sqrt(max(a, b)) terms, which is 3,000 for ten million verdicts.
    """
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    density = front / (x * (1 - x))
    if x > (a + 1) / (a + b + 2):
        # On this side of the mean the fraction converges fast for the other tail only.
        return 1 - front * _fraction(1 - x, b, a) / b, density
    return front * _fraction(x, a, b) / a, density


def _fraction(x: float, a: int, b: int) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 1_000_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
