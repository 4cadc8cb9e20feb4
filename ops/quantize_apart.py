"""Writes a checkpoint in fewer bits; run as a file by an interpreter that has llm-compressor, see ops.quantize.

It imports nothing of the fleet, which is not installed there. One JSON object comes in on stdin (Order). One goes out
once the checkpoint is whole (Written), and one at the end where photos are compared (Compared), each a line of the file
whose descriptor is the argument: stdout is everybody's.
"""

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import IO, Any, TypedDict

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
    """The checkpoint is whole: who ends now leaves it as it should be."""

    #: compressed-tensors' version, which the checkpoint says of itself.
    written_by: str
    #: Uncalibrated P(yes) of each compared photo, before.
    before: list[float]


class Compared(TypedDict):
    """How it answers."""

    #: Uncalibrated P(yes) of each compared photo, after.
    after: list[float]


def main(order: Order, told: IO[str]) -> None:
    """Quantises between two looks at the photos: who cannot have the first look learns it before hours go by.

    Args:
        order: what is to be done.
        told: takes the answers.
    """
    before = _before(order) if order["compared"] else []
    if order["calibration"]:
        _by_photos(order)
    else:
        _rounded(order)
    written: Written = {"written_by": written_by, "before": before}
    print(json.dumps(written), file=told, flush=True)
    if order["compared"]:
        _let_go()
        compared: Compared = {"after": _probabilities(order, order["out"])}
        print(json.dumps(compared), file=told, flush=True)


def _before(order: Order) -> list[float]:
    """P(yes) of each compared photo by the checkpoint as it was; nothing of it is held any more.

    Raises:
        SystemExit: it does not fit as a whole, which rounding alone would not need.
    """
    try:
        found = _probabilities(order, order["checkpoint"])
    except torch.OutOfMemoryError as error:
        sys.exit(f"{error}\nthe photos want the whole model on the GPU, where it has no room: leave --photos out")
    _let_go()
    return found


def _let_go() -> None:
    """Gives back what a model that nobody needs any more has of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


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
    with open(int(sys.argv[1]), "w") as answers:  # noqa: PTH123 - a descriptor; JSON is ASCII
        main(json.load(sys.stdin), answers)
