"""CoTracker 3: whether a film holds still, from points that are followed through its frames.

A feature of time and no evidence of roadwork by itself: its row has weight 0 until a calibrator was fitted. A still
photo has no score. The library is on no package index and its licence forbids commercial use: a clone of
github.com/facebookresearch/co-tracker is used, which an environment variable names.
"""

import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import P_MIN
from workers.engines import Runtime, Shot
from workers.engines.square import Pixels
from workers.engines.torch_device import dtype_of, inference, place, pretrained
from workers.weights import find

#: Folder of the clone.
CHECKOUT_VARIABLE = "NATIX_FLEET_COTRACKER"

#: Height and width of the frames. Source: cotracker.models.build_cotracker, model_resolution.
FRAME_PX = (384, 512)

#: Points a side of the grid that is laid over the first frame.
GRID = 10

#: Frames that the offline model's time embedding was trained on. Source: hubconf.py, window_len of version 3.
WINDOW = 60

#: A point moves with the majority if it is no farther than this from the median movement, in shares of the frame's
#: height and width.
STEADY = 0.02


class Frame(NamedTuple):
    """One photo of a film."""

    #: FRAME_PX and RGB: (384, 512, 3).
    pixels: Pixels
    sequence: str
    position: int


class Engine:
    """One tracker on one device."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)
        self._least_frames: Any = spec.options.get("least_frames", 8)
        if runtime.max_batch < int(str(self._least_frames)):
            raise ConfigError(
                f"model {spec.key!r}: it scores no film under least_frames {self._least_frames}, and max_batch is "
                f"{runtime.max_batch}: raise max_batch"
            )

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: there is no clone, or the weights are missing or not those of CoTracker 3.
        """
        predictor = _predictor(self._spec)
        path = find(self._spec)

        def load() -> Any:
            built = predictor(checkpoint=None, offline=True, v2=False, window_len=WINDOW)
            built.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return built

        # Points are places in float32, whatever the rest is: half precision is autocast's.
        self._track = place(pretrained(self._spec, load), torch.float32, self._runtime)

    def warm_up(self) -> None:
        """Scores one short film of grey."""
        grey = np.full((*FRAME_PX, 3), 127, np.uint8)
        self.score([Frame(grey, "grey", i) for i in range(self._least_frames)])

    def prepare(self, photo: Image.Image, shot: Shot) -> Frame | None:
        """The photo as a frame of its film; None for a still photo: nothing moves in it."""
        if not shot.sequence:
            return None
        height, width = FRAME_PX
        resized = photo.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return Frame(np.asarray(resized), shot.sequence, shot.position)

    def score(self, inputs: Sequence[Frame]) -> list[float | None]:
        """For each frame the log-odds of its film's steadiness, the same for all frames that were looked at together.

        Steadiness is steady_share(), clipped to [P_MIN, 1 - P_MIN]. None where fewer than least_frames of a film are
        in this batch: the engine sees no other.

        Raises:
            DeviceMemoryError: there is no memory for a film of that length.
        """
        scores: list[float | None] = [None] * len(inputs)
        for film in films(inputs, self._least_frames, self._runtime.max_batch):
            score = log_odds(self._steadiness([inputs[i] for i in film]))
            for i in film:
                scores[i] = score
        return scores

    def _steadiness(self, frames: Sequence[Frame]) -> float:
        kind = torch.device(self._runtime.device).type
        with inference(), torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32):
            stacked = np.stack([frame.pixels for frame in frames])
            video = torch.from_numpy(stacked).to(self._runtime.device).permute(0, 3, 1, 2)[None]
            # (1, T, N, 2) places in pixels and (1, T, N) whether each is seen; the tracker scales 0 to 255 itself.
            places, seen = self._track(video.float(), grid_size=GRID)
        return steady_share(places[0].float().cpu().numpy(), seen[0].cpu().numpy())


def films(frames: Sequence[Frame], least_frames: int, most_frames: int) -> list[list[int]]:
    """The places of frames in their batch, one list a film, by position.

    Args:
        frames: of one batch, in any order.
        least_frames: a film with fewer is left out.
        most_frames: a longer film is looked at in stretches as even as can be, none longer than this; a stretch with
            fewer than ``least_frames`` is left out as well.
    """
    by_sequence: dict[str, list[int]] = {}
    for i in sorted(range(len(frames)), key=lambda i: frames[i].position):
        by_sequence.setdefault(frames[i].sequence, []).append(i)
    found = []
    for film in by_sequence.values():
        stretches = math.ceil(len(film) / most_frames)
        ends = [len(film) * n // stretches for n in range(stretches + 1)]
        found += [film[start:end] for start, end in pairwise(ends)]
    return [stretch for stretch in found if len(stretch) >= least_frames]


def steady_share(places: npt.NDArray[np.float32], seen: npt.NDArray[np.bool_]) -> float:
    """The share of points that stay visible and move with the majority from each frame to the next, 0 to 1.

    The majority's movement is the median over the points that are seen in both frames, which a moving camera has too;
    what a worker or an excavator does differs from it by more than STEADY.

    Args:
        places: (T, N, 2), x and y in pixels of FRAME_PX; T at least 2.
        seen: (T, N).
    """
    height, width = FRAME_PX
    shares = places / np.array([width, height], np.float32)
    both = seen[1:] & seen[:-1]
    steps = np.where(both[..., None], shares[1:] - shares[:-1], np.nan)
    # A step in which nothing is seen has no majority, and nobody moves with it.
    there = both.any(1)
    majority = np.zeros((len(steps), 1, 2), np.float32)
    majority[there] = np.nanmedian(steps[there], axis=1, keepdims=True)
    # NaN is farther than anything.
    steady = np.linalg.norm(steps - majority, axis=-1) <= STEADY
    return float(steady.mean())


def log_odds(share: float) -> float:
    """Of a share from 0 to 1, clipped to [P_MIN, 1 - P_MIN]."""
    p = min(max(share, P_MIN), 1 - P_MIN)
    return math.log(p / (1 - p))


def _predictor(spec: ModelSpec) -> Any:
    """The class CoTrackerPredictor of the clone."""
    clone = os.environ.get(CHECKOUT_VARIABLE)
    if not clone or not (Path(clone) / "cotracker" / "predictor.py").is_file():
        raise ConfigError(
            f"model {spec.key!r}: no package index has its library: clone github.com/facebookresearch/co-tracker"
            f" (CC BY-NC 4.0) and set {CHECKOUT_VARIABLE} to that folder"
        )
    if clone not in sys.path:
        sys.path.append(clone)
    try:
        return import_module("cotracker.predictor").CoTrackerPredictor
    except ImportError as error:
        raise ConfigError(f"model {spec.key!r}: {clone}: its library needs {error.name or error}") from None
