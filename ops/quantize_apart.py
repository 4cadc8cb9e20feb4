"""Writes a checkpoint in fewer bits; run as a file by an interpreter that has llm-compressor, see ops.quantize.

It imports nothing of the fleet, which is not installed there. One JSON object comes in as the argument (Order), one
goes out as the last line of stdout (Written).
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, TypedDict

import torch
from compressed_tensors import __version__ as written_by  # type: ignore[import-not-found]
from llmcompressor import model_free_ptq, oneshot  # type: ignore[import-not-found]
from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


class Order(TypedDict):
    """What is to be done."""

    checkpoint: str
    out: str
    #: Preset of compressed-tensors.
    scheme: str
    #: Modules that keep their precision, each a name or "re:PATTERN".
    ignore: list[str]
    trust_remote_code: bool
    question: str
    #: First words of an answer, by what they mean; those that are one token count.
    yes: list[str]
    no: list[str]
    #: Photos that GPTQ reads its weights' importance from; none: weights are rounded to the nearest.
    calibration: list[str]
    #: Photos whose probability is compared before and after.
    compared: list[str]


class Written(TypedDict):
    """What came of it."""

    #: compressed-tensors' version, which the checkpoint says of itself.
    written_by: str
    #: Uncalibrated P(yes) of each compared photo, before and after.
    before: list[float]
    after: list[float]


def main(order: Order) -> Written:
    """Quantises, then compares."""
    if order["calibration"]:
        _by_photos(order)
    else:
        _rounded(order)
    compared = order["compared"]
    before = _probabilities(order, order["checkpoint"]) if compared else []
    after = _probabilities(order, order["out"]) if compared else []
    return {"written_by": written_by, "before": before, "after": after}


def _rounded(order: Order) -> None:
    """File by file, without the model's class and without holding it whole."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_free_ptq(
        order["checkpoint"], order["out"], scheme=order["scheme"], ignore=order["ignore"], max_workers=1, device=device
    )


def _by_photos(order: Order) -> None:
    """GPTQ: each layer's rounding errors are made up for by its other weights, as far as these photos matter.

    Source: E. Frantar and others, GPTQ: accurate post-training quantization, ICLR 2023.
    """
    model, processor = _loaded(order, order["checkpoint"])
    asked = [_asked(processor, order["question"], photo) for photo in order["calibration"]]
    loader = DataLoader(asked, batch_size=1, collate_fn=lambda batch: batch[0])
    recipe = GPTQModifier(targets="Linear", scheme=order["scheme"], ignore=order["ignore"])
    oneshot(model=model, dataset=loader, recipe=recipe, num_calibration_samples=len(asked))
    model.save_pretrained(order["out"], save_compressed=True)
    # Tokenizer, processor and template as they were: this library may be of another version than the server's.
    source = Path(order["checkpoint"])
    weights = {path for pattern in WEIGHTS for path in source.glob(pattern)}
    for path in sorted(set(source.iterdir()) - weights):
        if path.is_file():
            shutil.copyfile(path, Path(order["out"]) / path.name)


def _loaded(order: Order, checkpoint: str) -> tuple[Any, Any]:
    trust = {"trust_remote_code": order["trust_remote_code"]}
    processor = AutoProcessor.from_pretrained(order["checkpoint"], **trust)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", **trust).eval()
    return (model.cuda() if torch.cuda.is_available() else model), processor


def _asked(processor: Any, question: str, photo: str) -> Any:
    """The model's inputs for one photo."""
    with Image.open(photo) as opened:
        content = [{"type": "image", "image": opened.convert("RGB")}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _single(tokenizer: Any, words: list[str]) -> list[int]:
    """Tokens of the words that are one token each.

    Raises:
        SystemExit: none is, so there is no P(yes).
    """
    tokens = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    found = sorted({one[0] for one in tokens if len(one) == 1})
    if not found:
        sys.exit(f"its tokenizer has none of {', '.join(map(repr, words))} as a single token: leave --photos out")
    return found


def _probabilities(order: Order, checkpoint: str) -> list[float]:
    """P(yes) of each compared photo, by the first token of its answer."""
    model, processor = _loaded(order, checkpoint)
    first = [_single(processor.tokenizer, order[words]) for words in ("yes", "no")]
    found = []
    for photo in order["compared"]:
        asked = _asked(processor, order["question"], photo).to(model.device)
        with torch.inference_mode():
            scores = model(**asked).logits[0, -1].float()
        yes, no = (torch.logsumexp(scores[tokens], 0) for tokens in first)
        found.append(float(torch.sigmoid(yes - no)))
    return found


if __name__ == "__main__":
    written = main(json.loads(sys.argv[1]))
    sys.stdout.write(f"\n{json.dumps(written)}\n")
