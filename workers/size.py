"""Whether a box can be what it is called: its width in metres, from metric depth and the focal length.

A cone of two metres is no cone. This is no model and has no vote: a box of an impossible size loses confidence.
"""

import math

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from workers.detections import Detections

#: Widths that exist, in metres: least and most.
WIDTHS_M = {"cone": (0.25, 0.40), "barrier": (0.80, 1.50), "excavator": (2.00, 5.00), "sign": (0.40, 1.20)}

#: What the catalogue's classes and prompts are, in lower case. Others have no range: nothing is said of their boxes.
KINDS = {
    "traffic cone": "cone",
    "road cone": "cone",
    "orange traffic cone": "cone",
    "barrier": "barrier",
    "road barrier": "barrier",
    "traffic barrier": "barrier",
    "construction barrier": "barrier",
    "barricade": "barrier",
    "excavator": "excavator",
    "machinery vehicle": "excavator",
    "construction vehicle": "excavator",
    "traffic sign": "sign",
    "road sign": "sign",
    "road work sign": "sign",
    "roadwork sign": "sign",
    "construction sign": "sign",
}

#: A width that is so many times out of its range keeps exp(-1/2), 0.61, of its score. Depth from one photo is often 20
#: percent off, and a box a few pixels: that must cost little.
TOLERANCE = 1.5

#: Of a box's width and height: the part about its middle whose depth counts. Its corners show what is behind.
MIDDLE = 0.5


def kind_of(label: str) -> str:
    """What a class or prompt names, in one word for all models; one that has no range is a kind of its own."""
    name = label.casefold()
    return KINDS.get(name, name)


def factor(label: str, width_px: float, depth_m: float, focal_px: float) -> float:
    """How plausible the size of one box is, 0 to 1.

    Its width is width_px * depth_m / focal_px (pinhole camera: Hartley and Zisserman, Multiple View Geometry, 2004,
    6.1). Within the range of its kind the factor is 1; outside it is exp(-(ln r / ln TOLERANCE)^2 / 2), r being how
    many times the width is too large or too small, so that twice too large is as bad as twice too small.

    Args:
        label: a class or prompt; one that has no range: 1.0.
        width_px: in pixels of the photo as it arrived, 0 or more.
        depth_m: to the object, in metres, more than 0, finite.
        focal_px: in pixels of the photo as it arrived, more than 0.
    """
    return _factor(label, width_px, depth_m, focal_px, cut=False)


def weigh(found: Detections, depth_m: npt.NDArray[np.float32], size_px: tuple[int, int], focal_px: float) -> Detections:
    """The same boxes, the score of each times the factor of its size.

    The depth of a box is the median over its middle; where none is finite (sky), it keeps its score. A box that touches
    the photo's edge is cut off and may be wider than it looks: it is never too narrow. A cone that lies on its side
    shows its height as width: of a cone's box the shorter side counts.

    Args:
        found: boxes of one photo.
        depth_m: (h, w), metres, over the whole of the same photo, at any resolution; inf or NaN where there is none.
        size_px: width and height of the photo as it arrived, in pixels.
        focal_px: in pixels of the photo as it arrived; more than 0: where it is unknown nothing can be said, and the
            caller does not ask.
    """
    factors = [
        _factor_of_box(label, box, depth_m, size_px, focal_px)
        for label, box in zip(found.labels, found.boxes.tolist(), strict=True)
    ]
    return replace(found, scores=found.scores * np.array(factors, np.float32))


def _factor_of_box(
    label: str, box: list[float], depth_m: npt.NDArray[np.float32], size_px: tuple[int, int], focal_px: float
) -> float:
    middle_m = _median_m(box, depth_m)
    if middle_m is None:
        return 1.0
    left, top, right, bottom = box
    width_px, height_px = (right - left) * size_px[0], (bottom - top) * size_px[1]
    if kind_of(label) == "cone":
        width_px = min(width_px, height_px)
    # A detector's box at the edge often ends a fraction of a pixel before it.
    edge_x, edge_y = 1 / size_px[0], 1 / size_px[1]
    cut = left <= edge_x or top <= edge_y or right >= 1 - edge_x or bottom >= 1 - edge_y
    return _factor(label, width_px, middle_m, focal_px, cut=cut)


def _median_m(box: list[float], depth_m: npt.NDArray[np.float32]) -> float | None:
    """The depth of a box's middle, in metres; None: no pixel there has one."""
    height, width = depth_m.shape
    columns = _middle(box[0], box[2], width)
    rows = _middle(box[1], box[3], height)
    part = depth_m[rows, columns]
    there = part[np.isfinite(part) & (part > 0)]
    return float(np.median(there)) if there.size else None


def _middle(start: float, end: float, length_px: int) -> slice:
    """The middle of start to end (shares of the photo) in pixels of the depth map, one pixel at least."""
    centre, half = (start + end) / 2 * length_px, (end - start) / 2 * MIDDLE * length_px
    first = min(max(int(centre - half), 0), length_px - 1)
    return slice(first, max(first + 1, math.ceil(centre + half)))


def _factor(label: str, width_px: float, depth_m: float, focal_px: float, *, cut: bool) -> float:
    kind = kind_of(label)
    if kind not in WIDTHS_M:
        return 1.0
    least_m, most_m = WIDTHS_M[kind]
    width_m = width_px * depth_m / focal_px
    if width_m <= 0:
        return 1.0 if cut else 0.0
    # In logs: a quotient of extremes would overflow.
    times_ln = max(math.log(width_m) - math.log(most_m), 0.0 if cut else math.log(least_m) - math.log(width_m), 0.0)
    return math.exp(-((times_ln / math.log(TOLERANCE)) ** 2) / 2)
