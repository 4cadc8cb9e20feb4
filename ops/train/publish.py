"""Puts exported models into the project: python -m ops.train.publish PHOTOS OUT VERSION.

Writes configs/models/KEY/{model.onnx, model.toml, training.sha256} from OUT, and checks every training photo against
the manifest's sha256. The cards are written by hand, from OUT/KEY.table.md and OUT/evaluation.json.
"""

import argparse
import json
import shutil
from pathlib import Path

from ops.train.data import verify
from ops.train.train import SIDE_PX

MODELS = Path(__file__).parents[2] / "configs" / "models"
FITTED_ON = "{n} composites and rendered scenes that training never drew, half with roadwork; see CARD.md"


def main() -> None:
    """Publishes both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("version", help="such as 2026-11-23.1")
    args = parser.parse_args()
    digests = verify(args.photos, "train")
    fitted = json.loads((args.out / "calibration.json").read_text())
    for key, side in SIDE_PX.items():
        folder = MODELS / key
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.out / f"{key}.onnx", folder / "model.onnx")
        (folder / "training.sha256").write_text("\n".join(sorted(digests)) + "\n")
        (folder / "model.toml").write_text(
            f'key = "{key}"\n'
            f'version = "{args.version}"\n'
            "level = 0\n"
            'state = "works"\n'
            'reason = "the project\'s own, trained by ops/train; its figures and weaknesses are in CARD.md"\n'
            f'seen = "{args.version[:10]}, make run"\n'
            'precision = "int8"\n'
            'library = "onnxruntime.InferenceSession"\n'
            'score = "the model\'s own logit"\n'
            "weight = 1.0\n"
            'engine = "onnx"\n'
            'file = "model.onnx"\n'
            f"input_px = {side}\n"
            'licence = "Apache-2.0"\n'
            'training_list = "training.sha256"\n'
            "\n"
            "[calibrator]\n"
            f"slope = {fitted[key]['slope']:.6f}\n"
            f"intercept = {fitted[key]['intercept']:.6f}\n"
            f'fitted_on = "{FITTED_ON.format(n=fitted[key]["pictures"])}"\n'
        )


if __name__ == "__main__":
    main()
