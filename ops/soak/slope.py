"""How fast a series grows: least squares over means of blocks, whose interval holds for samples that hang together."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

#: Blocks of a series. Neighbouring samples of a process's memory hang together, so their own scatter would promise too
#: narrow an interval. Means of blocks that are longer than this lasts are nearly independent (the method of batch
#: means: Law, Simulation Modeling and Analysis, section 9.5.3), and the ordinary interval holds for them.
BLOCKS = 10
#: 97.5 % quantile of Student's t for BLOCKS - 2 degrees of freedom: 95 % between minus and plus.
_T = 2.306


class Slope(Struct, frozen=True):
    """Growth an hour, and its 95 % interval."""

    per_h: float
    low: float
    high: float


def slope_of(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """The growth of a series.

    Args:
        at_s: when each value was taken, rising; at least BLOCKS of them.
        values: of any unit; the slope is that unit an hour.

    Raises:
        ValueError: there are fewer values than blocks.
    """
    if len(values) < BLOCKS:
        raise ValueError(f"{len(values)} values are too few for {BLOCKS} blocks")
    cuts = [round(i * len(values) / BLOCKS) for i in range(BLOCKS + 1)]
    blocks = [slice(start, end) for start, end in pairwise(cuts)]
    x_h = [statistics.fmean(at_s[block]) / 3600 for block in blocks]
    y = [statistics.fmean(values[block]) for block in blocks]
    fit = statistics.linear_regression(x_h, y)
    left_over = sum((yi - fit.intercept - fit.slope * xi) ** 2 for xi, yi in zip(x_h, y, strict=True))
    middle = statistics.fmean(x_h)
    error = math.sqrt(left_over / (BLOCKS - 2) / sum((xi - middle) ** 2 for xi in x_h))
    return Slope(per_h=fit.slope, low=fit.slope - _T * error, high=fit.slope + _T * error)
