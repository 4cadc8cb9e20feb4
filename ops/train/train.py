# ruff: noqa: T201 # a command of its own: it prints its figures
"""Fits the models: python -m ops.train.train PHOTOS OUT (one GPU, about ten minutes).

    mine    a scout-m that never saw the clips scores random crops of them; crops that it calls clean become negatives
            of the clips' style, so that this source too can give both labels
    folds   each training source is left out once; both models are fitted on the rest and score what was left out.
            Thresholds, calibrators and every choice of a setting use these scores only
    final   both models on everything

Everything a later step needs is written to OUT: folds.npz, scout-m.pt, scout-s.pt, clean.json.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from ops.train.data import TRAINING_SOURCES, HotMap, Photo, crop, load, random_box
from ops.train.fit import Plan, fit, logits_of
from ops.train.measure import auc
from ops.train.nets import Scout, pretrained, scout_m, scout_s
from ops.train.pool import OF_CLIPS, WITHOUT_CLIPS, Box, Filling, Pool, gather, join
from workers.engines.square import square

#: Side of each model's input.
SIDE_PX = {"scout-m": 288, "scout-s": 224}
CLIPS = "roadwork-clips"

STARTED = time.monotonic()


def say(text: str) -> None:
    """Prints with the time since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def score_photos(net: Scout, side_px: int, photos: list[Photo], device: torch.device) -> np.ndarray:
    """Raw logits of whole photos, prepared as the fleet's engine does."""
    return logits_of(net, np.stack([square(photo.image, side_px) for photo in photos]), side_px, device)


def mine(net: Scout, photos: list[Photo], device: torch.device, per_photo: int) -> dict[str, list[Box]]:
    """Crops of positives in which ``net`` sees no roadwork and that hold next to none of its colours."""
    rng = Random(5)
    boxes: list[tuple[str, Box, float]] = []
    pixels = []
    for photo in photos:
        hot = HotMap(photo.image, wary=True)
        for _ in range(per_photo):
            box = random_box(rng, 0.28, whole=0)
            found, cells = hot.cells(box)
            if box[3] > 0.5:  # not only sky and roofs
                boxes.append((photo.file, box, found / cells))
                pixels.append(square(crop(photo.image, box), SIDE_PX["scout-m"]))
    scores = logits_of(net, np.stack(pixels), SIDE_PX["scout-m"], device)
    share = np.array([hot for _, _, hot in boxes])
    say(f"mining: {len(boxes)} crops, logit quartiles {np.percentile(scores, [5, 25, 50, 75, 95]).round(1)}")
    clean: dict[str, list[Box]] = {}
    limit = float(np.percentile(scores, 25))
    for (file, box, _), score, hot in zip(boxes, scores, share, strict=True):
        if score <= limit and hot <= 0.02:
            clean.setdefault(file, []).append(box)
    say(
        f"mining: {sum(map(len, clean.values()))} clean crops of {len(clean)} of {len(photos)} photos, "
        f"logit under {limit:.2f}"
    )
    return clean


class Trainer:
    """Holds the pool on the device and fits models on parts of it."""

    def __init__(self, pool: Pool, device: torch.device, effort: "Effort") -> None:
        self.pool, self.device, self.effort = pool, device, effort
        self.pixels = torch.as_tensor(pool.pixels).to(device)
        self.labels = torch.as_tensor(pool.labels).to(device)

    def add(self, pool: Pool) -> None:
        """Takes more pictures."""
        self.pixels = torch.cat([self.pixels, torch.as_tensor(pool.pixels).to(self.device)])
        self.pool = join(self.pool, pool)
        self.labels = torch.as_tensor(self.pool.labels).to(self.device)

    def teacher(self, chosen: np.ndarray, seconds: float) -> Scout:
        """A scout-m on the chosen pictures."""
        plan = Plan(SIDE_PX["scout-m"], seconds * self.effort.time, batch=self.effort.batch)
        return fit(scout_m(pretrained()), self.pixels, self.labels, chosen, plan)

    def student(self, chosen: np.ndarray, teacher: Scout, seconds: float) -> Scout:
        """A scout-s distilled from ``teacher``."""
        plan = Plan(
            SIDE_PX["scout-s"],
            seconds * self.effort.time,
            2 * self.effort.batch,
            body_rate=3e-3,
            head_rate=3e-3,
            smoothing=0.02,
        )
        return fit(scout_s(), self.pixels, self.labels, chosen, plan, (teacher, SIDE_PX["scout-m"]))


@dataclass(frozen=True)
class Effort:
    """How much of everything; the second one only shows that the script runs, on any CPU."""

    pictures: int = 50_000
    first: int = 16_000
    of_clips: int = 18_000
    batch: int = 128
    time: float = 1.0
    photos: int = 10_000
    crops: int = 24


TRIAL = Effort(pictures=120, first=60, of_clips=60, batch=4, time=0.02, photos=12, crops=3)


def fold(trainer: Trainer, out: str, nets: tuple[Scout, Scout], photos: list[Photo]) -> dict[str, np.ndarray]:
    """What both models, fitted without the source ``out``, say of its photos and of composites on its backgrounds."""
    pool = trainer.pool
    left = [photo for photo in photos if photo.source == out]
    pasted = np.flatnonzero((pool.sources == out) & np.char.endswith(pool.kinds, "pair"))[:1500]
    found: dict[str, np.ndarray] = {
        "label": np.concatenate([np.array([p.label for p in left]), pool.labels[pasted]]).astype(int),
        "group": np.concatenate([np.array([p.group for p in left]), pool.groups[pasted]]),
        "source": np.full(len(left) + len(pasted), out),
        "real": np.arange(len(left) + len(pasted)) < len(left),
    }
    for key, net in zip(("scout-m", "scout-s"), nets, strict=True):
        scores = score_photos(net, SIDE_PX[key], left, trainer.device)
        pairs = logits_of(net, trainer.pixels[pasted], SIDE_PX[key], trainer.device)
        found[key] = np.concatenate([scores, pairs])
        real = found["label"][: len(left)]
        say(f"without {out}: {key} AUC photos {auc(real, scores):.3f} ({real.sum()}/{len(real)}), composites "
            f"{auc(found['label'][len(left):], pairs):.3f}; logit quartiles of photos 1: "
            f"{quartiles(scores[real == 1])} 0: {quartiles(scores[real == 0])}")  # fmt: skip
    return found


def quartiles(values: np.ndarray) -> str:
    """Three numbers, or a dash."""
    return "/".join(f"{v:.1f}" for v in np.percentile(values, [25, 50, 75])) if len(values) else "-"


def report_pool(pool: Pool) -> None:
    """Says how many pictures of each source and kind a pool holds."""
    names = [f"{source}/{kind}" for source, kind in zip(pool.sources, pool.kinds, strict=True)]
    say(
        "pool: " + ", ".join(f"{key} {count}" for key, count in zip(*np.unique(names, return_counts=True), strict=True))
    )


def main() -> None:
    """Runs the steps; the processor makes pictures while the device fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trial", action="store_true", help="a minute on a CPU that shows that the script runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    effort = TRIAL if args.trial else Effort()
    args.out.mkdir(parents=True, exist_ok=True)
    material = gather(args.photos, {})
    filling = Filling(material, WITHOUT_CLIPS, effort.pictures, args.processes, first_seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(11)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.zeros(1, device=device)
    photos = load(args.photos, "train", short_side_px=420)[:: max(1, 577 // effort.photos)]
    say(f"{len(photos)} photos, {device}")

    # Without the clips: finds clean crops of them, and is a fold of its own.
    trainer = Trainer(filling.take(effort.first), device, effort)
    say(f"{effort.first} pictures")
    teacher_a = trainer.teacher(np.arange(len(trainer.labels)), 28)
    clips = [photo for photo in photos if photo.source == CLIPS and photo.label]
    clean = mine(teacher_a, clips, device, effort.crops)
    (args.out / "clean.json").write_text(json.dumps(clean))
    trainer = Trainer(filling.take(effort.pictures), device, effort)
    more = Filling(gather(args.photos, clean), OF_CLIPS, effort.of_clips, args.processes, first_seed=10**9)
    say("fold without clips")
    student_a = trainer.student(np.arange(len(trainer.labels)), teacher_a, 30)
    trainer.add(more.take(effort.of_clips))
    report_pool(trainer.pool)

    everything = np.arange(len(trainer.labels))
    teacher = trainer.teacher(everything, 75)
    torch.save(teacher.state_dict(), args.out / "scout-m.pt")
    student = trainer.student(everything, teacher, 85)
    torch.save(student.state_dict(), args.out / "scout-s.pt")
    say("final models saved")

    found = [fold(trainer, CLIPS, (teacher_a, student_a), photos)]
    for source in TRAINING_SOURCES:
        if source != CLIPS:
            chosen = np.flatnonzero(trainer.pool.sources != source)
            teacher_f = trainer.teacher(chosen, 28)
            student_f = trainer.student(chosen, teacher_f, 30)
            found.append(fold(trainer, source, (teacher_f, student_f), photos))
        together = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        np.savez_compressed(args.out / "folds.npz", **together)
    say("done")


if __name__ == "__main__":
    main()
