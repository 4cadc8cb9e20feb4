# ruff: noqa: T201 # a command of its own: it prints its figures
"""Writes a fitted model as int8 ONNX: python -m ops.train.export PHOTOS OUT scout-m (no GPU needed).

The graph takes uint8 photos (N, side, side, 3), RGB, and gives raw logits (N,). Weights are 8-bit per channel,
activations 8-bit, with ranges read off training photos and composites; the 505 evaluate photos are never seen here.
Writes OUT/scout-m.float.onnx and OUT/scout-m.onnx, and says what eight bits cost on training pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn

from ops.train.measure import auc
from ops.train.nets import Scout, scout_m, scout_s
from ops.train.pool import OF_CLIPS, WITHOUT_CLIPS, gather, make
from ops.train.train import SIDE_PX
from workers.engines.square import square


class FromPixels(nn.Module):
    """A network with the normalisation in front of it."""

    def __init__(self, net: Scout) -> None:
        super().__init__()
        self.net = net

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """(N, side, side, 3) uint8 to (N,)."""
        return self.net((photos.permute(0, 3, 1, 2).float() - 127.0) / 128.0)


class Pictures(CalibrationDataReader):
    """Hands training pictures to the quantiser, one batch at a time."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._batches = iter(np.array_split(pictures, max(1, len(pictures) // 8)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"photos": batch}


def run(path: Path, pictures: np.ndarray) -> np.ndarray:
    """Raw logits of an ONNX file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {"photos": part})[0] for part in np.array_split(pictures, max(1, len(pictures) // 32))]
    )


def main() -> None:
    """Exports one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", choices=sorted(SIDE_PX))
    parser.add_argument("--pictures", type=int, default=240, help="to read ranges off; as many more measure the loss")
    args = parser.parse_args()
    side = SIDE_PX[args.model]
    net = scout_m(None) if args.model == "scout-m" else scout_s()
    net.load_state_dict(torch.load(args.out / f"{args.model}.pt", map_location="cpu", weights_only=True))
    whole, small = args.out / f"{args.model}.float.onnx", args.out / f"{args.model}.onnx"
    torch.onnx.export(
        FromPixels(net).eval(),
        (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
        str(whole),
        input_names=["photos"],
        output_names=["logits"],
        dynamic_axes={"photos": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    material = gather(args.photos, json.loads((args.out / "clean.json").read_text()))
    made = [make(material, WITHOUT_CLIPS if i % 8 < 6 else OF_CLIPS, 2 * 10**9 + i) for i in range(2 * args.pictures)]
    pictures = np.stack([square(Image.fromarray(pixels), side) for pixels, *_ in made])
    labels = np.array([label for _, label, *_ in made])
    ready = args.out / f"{args.model}.ready.onnx"
    quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(small),
        Pictures(pictures[: args.pictures]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Seven-bit weights: with eight, processors without VNNI overflow their 16-bit sums.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    ready.unlink()
    test, truth = pictures[args.pictures :], labels[args.pictures :]
    before, after = run(whole, test), run(small, test)
    print(
        f"{args.model}: {small.stat().st_size} bytes; on {len(test)} training pictures "
        f"AUC float {auc(truth, before):.4f}, "
        f"int8 {auc(truth, after):.4f}; logits differ by {np.abs(before - after).mean():.3f} on average, "
        f"correlation {np.corrcoef(before, after)[0, 1]:.4f}"
    )


if __name__ == "__main__":
    main()
