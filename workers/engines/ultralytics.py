"""Runs a YOLO of the ultralytics package with classes of its own: YOLO11, YOLO26, and in their environment its forks.

The library likes to fetch, to install and to report; it is told not to before it is imported.
"""

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import NOTHING, Detections, Detector, Floats
from workers.engines import Runtime, Shot
from workers.engines.pixels import batch
from workers.engines.square import Pixels
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

if "ultralytics" in sys.modules:
    raise RuntimeError("ultralytics was imported before its engine: it would fetch, install and report")

# The directory goes with the process: no settings file in the user's home, and none of an earlier run.
_SETTINGS = tempfile.TemporaryDirectory(prefix="natix-fleet-ultralytics-")
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": _SETTINGS.name}
os.environ.setdefault("YOLO_VERBOSE", "false")
# A checkpoint is a pickle: only what the library's own classes need may be in it. A user who trusts his may say false.
os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")
# The library would set it to 1 for all that is imported later.
_THREADS = os.environ.get("OMP_NUM_THREADS")

import torchvision  # noqa: E402, F401 - the library's NMS takes its kernels where it is imported already
from ultralytics import YOLO  # noqa: E402 - after what it reads when imported
from ultralytics.data.augment import LetterBox  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402

if _THREADS is None:
    os.environ.pop("OMP_NUM_THREADS", None)

#: Boxes of one class that share more than this of their union are one thing: the library's own for prediction.
NMS_IOU = 0.7


class Sheet(Struct, frozen=True):
    """A photo in the middle of a grey square."""

    pixels: Pixels
    #: Left, top, width, height of the photo there, in pixels.
    frame_px: tuple[int, int, int, int]


class Engine(Detector):
    """One YOLO on one device.

    A row without classes abstains: its checkpoint knows nothing of roadwork, and a constant no would be a lie.
    """

    #: Boxes of different classes compete for one thing; the library's choice for its prediction.
    agnostic = False

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(self.wanted(spec))
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)
        self._letterbox = LetterBox((spec.input_px, spec.input_px))

    @staticmethod
    def wanted(spec: ModelSpec) -> dict[str, float]:
        """The names of the boxes that count, each with its weight."""
        return spec.classes

    def open(self, path: Path) -> Any:
        """The library's model of a checkpoint; raises whatever the library does."""
        return YOLO(path).model

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: they are missing or no detector's, or the detector lacks one of the row's classes.
        """
        path = find(self._spec)
        if not path.is_file():
            raise ConfigError(f"model {self._spec.key!r}: its row names no file, and {path} is a folder")
        model = pretrained(self._spec, lambda: self.open(path))
        if "nms" in self._spec.options:
            # YOLO26 and YOLOE-26 have a second head, which needs no NMS; the library chooses by the same word.
            model.end2end = not self._spec.options["nms"]
        if getattr(model, "task", "") not in {"detect", "segment"}:
            raise ConfigError(f"model {self._spec.key!r}: {path} is no detector")
        stride_px = int(max(model.stride))
        if self._spec.input_px % stride_px:
            raise ConfigError(f"model {self._spec.key!r}: input_px is no multiple of the checkpoint's {stride_px}")
        self._names: dict[int, str] = dict(model.names)
        ids = {name: i for i, name in self._names.items()}
        if missing := [name for name in self.weights if name not in ids]:
            raise ConfigError(f"model {self._spec.key!r}: {path} knows no class {', '.join(missing)}")
        self._ids = [ids[name] for name in self.weights]
        self._end_to_end = bool(getattr(model, "end2end", False))
        self._model = place(model.fuse(verbose=False), self._dtype, self._runtime)

    def warm_up(self) -> None:
        """Runs one full batch of grey, also where the model has no vote: that shows that its weights are sound."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self.detect([self.prepare(grey, Shot())] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Sheet:  # noqa: ARG002 - the contract's
        """The photo, its shape kept, in the middle of a square of grey, by the library's own code."""
        side_px = self._spec.input_px
        gain = min(side_px / photo.width, side_px / photo.height)
        width, height = (max(round(length * gain), 1) for length in photo.size)
        # Half a pixel goes where the library puts it.
        left, top = (round((side_px - length) / 2 - 0.1) for length in (width, height))
        return Sheet(self._letterbox(image=np.asarray(photo)), (left, top, width, height))

    def detect(self, inputs: Sequence[Sheet]) -> list[Detections]:
        """The boxes of the row's classes.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        found: list[Detections] = []
        for part in parts(inputs, self._runtime.max_batch):
            with inference():
                pixels = batch([s.pixels for s in part], self._runtime.device, self._dtype, (0, 0, 0), (1, 1, 1))
                kept = self._keep(self._model(pixels))
            found += [self._select(sheet, rows) for sheet, rows in zip(part, kept, strict=True)]
        return found

    def _keep(self, out: Any) -> list[Floats]:
        """Of each photo (N, 6 or more): left, top, right, bottom in pixels of the square, score, class."""
        while isinstance(out, tuple | list):
            # What else comes along is for training, or masks.
            out = out[0]
        rows = non_max_suppression(
            out.float(),
            conf_thres=self._spec.least_score,
            iou_thres=NMS_IOU,
            classes=self._ids,
            agnostic=self.agnostic,
            nc=len(self._names),
            end2end=self._end_to_end,
            # After its time limit the library would leave the other photos of the batch without boxes.
            max_time_img=math.inf,
        )
        return [one.cpu().numpy() for one in rows]

    def _select(self, sheet: Sheet, rows: Floats) -> Detections:
        if not len(rows):
            return NOTHING
        left, top, width, height = sheet.frame_px
        boxes = (rows[:, :4] - (left, top, left, top)) / (width, height, width, height)
        labels = tuple(self._names[int(i)] for i in rows[:, 5])
        return Detections(boxes.clip(0, 1).astype(np.float32), rows[:, 4].astype(np.float32), labels)
