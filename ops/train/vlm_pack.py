# ruff: noqa: T201 # a command of its own: it prints its figures
"""Puts what vlm_train needs on another machine into a folder: python -m ops.train.vlm_pack PHOTOS FOLDER.

The training photos without the clips, 420 px on the short side, which is what vlm_train would make of them, and the
teacher's pre-trained weights in half precision: trunk.pt. No photo for evaluation travels.
"""

import argparse
import csv
from pathlib import Path

import torch

from ops.train.data import load, rows
from ops.train.nets import pretrained

CLIPS = "roadwork-clips"


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    (args.folder / "images").mkdir(parents=True, exist_ok=True)
    kept = []
    for row, photo in zip(rows(args.photos, "train"), load(args.photos, "train", short_side_px=420), strict=True):
        if photo.source != CLIPS:
            kept.append(row)
            photo.image.save(args.folder / "images" / photo.file, "JPEG", quality=85)
    with (args.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        table = csv.DictWriter(lines, list(kept[0]))
        table.writeheader()
        table.writerows(kept)
    held = torch.load(pretrained(), map_location="cpu", weights_only=True)
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in held.items()},
               args.folder / "trunk.pt")  # fmt: skip
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{len(kept)} photos and the trunk: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
