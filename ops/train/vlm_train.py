# ruff: noqa: T201 # a command of its own: it prints its figures
"""Trains mini-vlm: python -m ops.train.vlm_train PHOTOS OUT --seconds N (one GPU, eight minutes).

    pool     pictures on all processors, until there are enough or a fifth of the time is over
    teacher  EfficientNet-Lite0 fitted on them
    student  mini-vlm fitted to the labels, to the teacher's opinion and to what the teacher sees; saved every minute

With --folds a run of its own: no final model, but for each training source that gives both labels a shorter teacher and
student that never saw it, scored on what was left out. Clips are left out: they hold next to no photo without roadwork.
Writes OUT/mini-vlm (the checkpoint), OUT/teacher.pt and OUT/training.json; or OUT/folds.npz and OUT/folds.json.
"""

import argparse
import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from ops.train.data import TRAINING_SOURCES, Photo, load
from ops.train.measure import auc
from ops.train.nets import Scout, pretrained
from ops.train.vlm_fit import fit_student, scores
from ops.train.vlm_pool import ROW_BYTES, Pictures, fill, prepare
from ops.train.vlm_shape import processor, save
from ops.train.vlm_teacher import Desk, fit_teacher, lesson

STARTED = time.monotonic()
#: The scouts' pictures have seeds under 4 * 10**9, the heads' follow, these follow them.
FIRST_SEED = 5 * 10**9
CLIPS = "roadwork-clips"
#: Pictures that are made with the others and never fitted on: they show how a fit goes.
KEPT = 1024


@dataclass(frozen=True)
class Effort:
    """How much of everything; shares are of all seconds."""

    pictures: int = 60_000
    batch: int = 256
    teacher_batch: int = 128
    pool: float = 0.18
    teacher: float = 0.14
    student: float = 0.66
    fold_teacher: float = 0.10
    fold_student: float = 0.30
    #: Composites that a fold is scored on.
    scored: int = 1500
    #: AUC that a teacher must have on pictures that were kept; one that learnt nothing teaches nothing.
    least_auc: float = 0.8


#: Shows that the script runs, on any processor.
TRIAL = Effort(pictures=64, batch=4, teacher_batch=4, pool=10.0, scored=12, least_auc=0.0)


def say(text: str) -> None:
    """Prints with the time since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def teacher_scores(teacher: Scout, desk: Desk, places: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The teacher's logits of pictures."""
    found = np.empty(len(places), np.float32)
    for shape in np.unique(shapes[places]):
        at = np.flatnonzero(shapes[places] == shape)
        for part in np.array_split(at, max(1, len(at) // 128)):
            pixels = desk.pixels(torch.as_tensor(places[part], device=desk.device), int(shape))
            found[part] = lesson(teacher, pixels).logits.cpu().numpy()
    return found


def kept_of(pictures: Pictures) -> np.ndarray:
    """Places of the pictures that are never fitted on."""
    count = len(pictures.labels)
    return np.arange(count - min(KEPT, count // 4), count)


def rows_of(photos: list[Photo]) -> tuple[np.ndarray, np.ndarray]:
    """Photos as rows of a pool, and the place of each one's shape."""
    flat = np.zeros((len(photos), ROW_BYTES), np.uint8)
    return flat, np.array([fill(row, photo.image) for row, photo in zip(flat, photos, strict=True)])


class Run:
    """One training with what it was given."""

    def __init__(self, args: argparse.Namespace, effort: Effort) -> None:
        self.args, self.effort = args, effort
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.words: Qwen3VLProcessor = processor()
        self.said: dict[str, object] = {}

    def fit(
        self, pictures: Pictures, desk: Desk, chosen: np.ndarray, shares: tuple[float, float], name: str
    ) -> tuple[Scout, Qwen3VLForConditionalGeneration]:
        """A teacher and its student on the chosen pictures, the student saved as ``name``."""
        desk.choose(pictures, chosen)
        desk.batch = self.effort.teacher_batch
        teacher = fit_teacher(desk, self.args.trunk or pretrained(), shares[0] * self.args.seconds)
        self._examine(teacher, desk, pictures)
        desk.batch = self.effort.batch
        student = fit_student(
            desk,
            self.words.tokenizer,
            teacher,
            shares[1] * self.args.seconds,
            lambda net: self._save(net, name),
        )
        self._save(student, name)
        return teacher, student

    def _examine(self, teacher: Scout, desk: Desk, pictures: Pictures) -> None:
        kept = kept_of(pictures)
        found = auc(pictures.labels[kept], teacher_scores(teacher, desk, kept, pictures.shapes))
        say(f"teacher: AUC {found:.3f} on {len(kept)} pictures that no fit saw")
        # Of so few that both labels may not be there it is not a number.
        if found < self.effort.least_auc:
            raise SystemExit(f"the teacher's AUC is under {self.effort.least_auc}: give it more --seconds")

    def _save(self, net: Qwen3VLForConditionalGeneration, name: str) -> None:
        if name == "mini-vlm":
            save(net, self.words, self.args.out / name)

    def final(self, pictures: Pictures, desk: Desk, kept: np.ndarray) -> None:
        """Fits on all pictures but those ``kept``, and says how it does on these."""
        chosen = np.arange(kept[0])
        shares = self.effort.teacher, self.effort.student
        teacher, student = self.fit(pictures, desk, chosen, shares, "mini-vlm")
        torch.save(copy.deepcopy(teacher).half().state_dict(), self.args.out / "teacher.pt")
        rows = desk.flat[torch.as_tensor(kept, device=self.device)]
        said = {
            "teacher": teacher_scores(teacher, desk, kept, pictures.shapes),
            "student": scores(student, self.words.tokenizer, rows, pictures.shapes[kept]),
        }
        self.said["kept pictures"] = {who: auc(pictures.labels[kept], values) for who, values in said.items()}
        say(f"AUC on {len(kept)} pictures that no fit saw: {self.said['kept pictures']}")

    def fold(self, out: str, pictures: Pictures, desk: Desk, photos: list[Photo]) -> dict[str, np.ndarray]:
        """What a student that never saw the source ``out`` says of its photos and of composites on its backgrounds."""
        shares = self.effort.fold_teacher, self.effort.fold_student
        chosen = np.flatnonzero(pictures.sources[: kept_of(pictures)[0]] != out)
        _, student = self.fit(pictures, desk, chosen, shares, f"without {out}")
        left = [photo for photo in photos if photo.source == out]
        pasted = np.flatnonzero((pictures.sources == out) & (pictures.kinds == "pair"))[: self.effort.scored]
        flat, shapes = rows_of(left)
        reader = self.words.tokenizer
        real = scores(student, reader, torch.as_tensor(flat).to(self.device), shapes)
        places = torch.as_tensor(pasted, device=self.device)
        made = scores(student, reader, desk.flat[places], pictures.shapes[pasted])
        truth = np.array([photo.label for photo in left])
        self.said[f"without {out}"] = {
            "photos": auc(truth, real), "roadwork": int(truth.sum()), "none": int((truth == 0).sum()),
            "composites": auc(pictures.labels[pasted], made),
        }  # fmt: skip
        say(f"without {out}: {self.said[f'without {out}']}")
        return {
            "label": np.concatenate([truth, pictures.labels[pasted]]),
            "source": np.full(len(left) + len(pasted), out),
            "real": np.arange(len(left) + len(pasted)) < len(left),
            "score": np.concatenate([real, made]),
        }


def main() -> None:
    """Runs the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=440.0)
    parser.add_argument("--trunk", type=Path, help="weights of EfficientNet-Lite0; else those of the package")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folds", action="store_true", help="leave each source out instead")
    parser.add_argument("--trial", action="store_true", help="a few pictures and steps that show that the script runs")
    args = parser.parse_args()
    effort = TRIAL if args.trial else Effort()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(13)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    run = Run(args, effort)
    pictures = prepare(args.photos, effort.pictures, effort.pool * args.seconds, args.processes, FIRST_SEED)
    count = len(pictures.labels)
    names, counts = np.unique(
        [f"{source}/{kind}" for source, kind in zip(pictures.sources, pictures.kinds, strict=True)], return_counts=True
    )
    run.said["pictures"] = dict(zip(names.tolist(), counts.tolist(), strict=True))
    say(f"{count} pictures, {np.bincount(pictures.shapes)} of each shape, {run.said['pictures']}; {run.device}")
    kept = kept_of(pictures)
    desk = Desk(pictures, np.arange(kept[0]), run.device, effort.batch)

    if args.folds:
        photos = load(args.photos, "train", short_side_px=420)[:: 20 if args.trial else 1]
        left_out = [source for source in TRAINING_SOURCES if source != CLIPS]
        found = [run.fold(source, pictures, desk, photos) for source in left_out]
        together = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        np.savez_compressed(args.out / "folds.npz", **together)
    else:
        run.final(pictures, desk, kept)
    run.said["seconds"] = time.monotonic() - STARTED
    run.said["device"] = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    (args.out / ("folds.json" if args.folds else "training.json")).write_text(json.dumps(run.said, indent=1))
    say("done")


if __name__ == "__main__":
    main()
