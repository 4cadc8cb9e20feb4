"""Merges what the detectors of a panel saw: the same thing, seen in the same place by several, counts more than by one.

Its inputs are no photos: workers.panel hands it, for each photo, the boxes of every detector that looked.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from supervision.detection.utils.iou_and_nms import box_non_max_merge

from configs.model import ModelSpec
from workers.detections import NOTHING, Detections, noisy_or
from workers.engines import Runtime, Shot
from workers.size import kind_of

#: Boxes of one detector that are merged at most, the surest: grouping takes the square of their number.
MOST_BOXES = 100

#: Boxes of one kind that share at least this much of their union are of the same thing.
SAME_IOU = 0.55


class Engine:
    """A vote on the merged boxes of a panel."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:  # noqa: ARG002 - the contract's
        self._spec = spec

    def load(self) -> None:
        """Nothing to load: the library is imported by now."""

    def warm_up(self) -> None:
        """Merges once."""
        self.score([[NOTHING]])

    def prepare(self, photo: Image.Image, shot: Shot) -> list[Detections]:  # noqa: ARG002 - the contract's
        """Nothing yet: the panel fills it when the detectors have looked."""
        return []

    def score(self, inputs: Sequence[Sequence[Detections]]) -> list[float | None]:
        """One raw logit a photo, the noisy-or of the merged boxes; None where no detector looked."""
        return [noisy_or(fuse(seen), self._spec.classes) if seen else None for seen in inputs]


def fuse(seen: Sequence[Detections], same_iou: float = SAME_IOU) -> Detections:
    """Weighted boxes fusion over the detectors of one photo.

    Boxes of a kind that overlap make one: its place is their mean weighted by score, its score their mean, times the
    share of detectors that saw it: n / N for n of N. Source: R. Solovyev, W. Wang, T. Gabruseva, Weighted boxes fusion,
    Image and Vision Computing, 2021, equations 1 to 5. Which boxes overlap says supervision.

    Args:
        seen: of each detector that looked, N in all; the surest MOST_BOXES of each count.
        same_iou: boxes that share so much of their union are of one thing.

    Returns:
        Labels are kinds (workers.size), since each detector has names of its own.
    """
    kinds = sorted({kind_of(label) for found in seen for label in found.labels})
    if not kinds:
        return NOTHING
    rows = [
        [*box, score, kinds.index(kind_of(label)), witness]
        for witness, found in enumerate(seen)
        for box, score, label in _surest(found)
    ]
    table = np.array(rows)
    boxes, scores, labels = [], [], []
    for group in box_non_max_merge(table[:, :6], same_iou):
        members = table[group]
        weights = members[:, 4] + 1e-9
        boxes.append((members[:, :4] * weights[:, None]).sum(0) / weights.sum())
        scores.append(members[:, 4].mean() * len(set(members[:, 6].tolist())) / len(seen))
        labels.append(kinds[int(members[0, 5])])
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), tuple(labels))


def _surest(found: Detections) -> list[tuple[list[float], float, str]]:
    boxes = list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels, strict=True))
    return sorted(boxes, key=lambda box: -box[1])[:MOST_BOXES]
