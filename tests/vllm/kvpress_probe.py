"""What the kvpress engine does inside; run as a file, by the interpreter that has kvpress: prints JSON.

Some package there may call itself tests too, so that nothing here is imported by that name.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import kvpress  # type: ignore[import-not-found]
import torch
from kvpress import utils as kvpress_utils
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from configs.errors import ConfigError
from configs.model import ModelSpec
from configs.prompt import load_prompt
from configs.serving import Server
from workers.detections import Detector
from workers.engines import Runtime, Shot
from workers.engines.kvpress import Engine
from workers.engines.kvpress_presses import LEFT_OUT, OFFERED

KEY = "qwen3-vl-4b-kvpress"
QUESTIONS = [load_prompt("roadwork-1"), "Is it wet? Yes or No.", "Is there a cone or a barrier on the road? Yes or No."]
#: Of a photo, in square pixels: 64 to 400 tokens.
SIZE = {"shortest_edge": 64 * 32**2, "longest_edge": 400 * 32**2}
#: Nothing, too much, no number; a press that is none, one that is left out, one that gives no numbers; the press' own
#: argument, another one's, none at all; text that cannot be kept; a prompt that is none.
WRONG: list[dict[str, Any]] = [
    {"press": "knorm", "compression_ratio": 1.0},
    {"press": "knorm", "compression_ratio": -0.1},
    {"press": "knorm", "compression_ratio": "half"},
    {"press": "snap"},
    {"press": "adakv"},
    {"press": "chunkkv", "inner": "pyramidkv"},
    {"press": "snapkv", "window": 4},
    {"press": "knorm", "window_size": 4},
    {"press": "none", "window_size": 4},
    {"press": "chunkkv", "image_only": True},
    {"press": "knorm", "image_only": "yes"},
    {"press": "knorm", "questions": []},
    {"press": "knorm", "questions": ["roadwork-0"]},
]


def engine_of(*, load: bool = True, **options: Any) -> Engine:
    spec = ModelSpec(
        key=KEY, state="shape", reason="", engine="kvpress", precision="fp32", input_px=640,
        options={"questions": QUESTIONS[:1], **options},
    )  # fmt: skip
    engine = Engine(spec, Runtime(max_batch=1, server=Server(max_outside=1.0)))
    return loaded(engine) if load else engine


def loaded(engine: Engine) -> Engine:
    engine.load()
    # The small checkpoint's own bound is 16 tokens.
    engine._images.size = SIZE
    return engine


def photo() -> Image.Image:
    dice = torch.Generator().manual_seed(7)
    coarse = torch.randint(0, 255, (9, 16, 3), generator=dice, dtype=torch.uint8).numpy()
    return Image.fromarray(coarse).resize((640, 360))


def score(engine: Engine) -> float:
    (found,) = engine.score([engine.prepare(photo(), Shot())])
    assert found is not None
    return found


def one_shot(question: str) -> float:
    """The whole prompt in one pass of the model, as its own processor makes it: no cache, no positions of ours."""
    folder = Path(os.environ["NATIX_FLEET_WEIGHTS"]) / KEY
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    given = processor(text=[text], images=[photo()], return_tensors="pt", size=SIZE)
    with torch.inference_mode():
        logits = model(**given).logits[0, -1].float()
    words = [[processor.tokenizer(w, add_special_tokens=False)["input_ids"] for w in ws] for ws in (YES, NO)]
    yes, no = (torch.tensor([ids[0] for ids in one if len(ids) == 1]) for one in words)
    return float(logits[yes].logsumexp(0) - logits[no].logsumexp(0))


YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")


def message(make: Callable[[], object]) -> str:
    try:
        make()
    except ConfigError as error:
        return str(error)
    return ""


def presses(base: float) -> dict[str, Any]:
    found = {}
    for name in OFFERED:
        engine = engine_of(press=name, compression_ratio=0.5)
        with torch.inference_mode():
            prefix = engine.look(engine.prepare(photo(), Shot()))
        found[name] = {
            "tokens": prefix.tokens,
            "kept": prefix.kept,
            "bytes": prefix.bytes,
            "image_only": engine.cutter.image_only,
            "moved": score(engine) - base,
            "again": score(engine) - base,
        }
    return found


def weights_of_attention() -> dict[str, float]:
    """TOVA reads attention weights where it is given them, and works them out where not: that must be the same."""
    worked_out = engine_of(press="tova", compression_ratio=0.8)
    given = engine_of(load=False, press="tova", compression_ratio=0.8)
    given.cutter.wants_weights = True
    loaded(given)
    found = {"given": score(given), "worked_out": score(worked_out)}
    mended = kvpress_utils.Qwen3Attention
    kvpress_utils.Qwen3Attention = mended[0]
    found["unmended"] = score(worked_out)
    kvpress_utils.Qwen3Attention = mended
    return found


def kept_text() -> dict[str, Any]:
    """Which of the first layer's keys are still there, by place: the marks before and behind the photo, and it."""
    whole = engine_of(press="none")
    cut = engine_of(press="knorm", compression_ratio=0.75)
    picture = cut.prepare(photo(), Shot())
    with torch.inference_mode():
        before, after = whole.look(picture), cut.look(picture)
    keys, left = before.layers[0][0][0], after.layers[0][0][0]
    still = [[bool((head == key).all(-1).any()) for key in keys[i]] for i, head in enumerate(left)]
    return {"still": still, "head": len(cut._head), "tail": len(cut._tail)}


def first_pass() -> float:
    """The largest difference that a press makes to the photo's own pass."""
    hidden = []
    for name in ("none", "knorm"):
        engine = engine_of(press=name, compression_ratio=0.9)
        picture = engine.prepare(photo(), Shot())
        seen: list[Any] = []
        hook = engine._model.model.register_forward_hook(lambda *a, seen=seen: seen.append(a[2].last_hidden_state))
        with torch.inference_mode():
            engine.look(picture)
        hook.remove()
        hidden.append(seen[0])
    return float((hidden[0] - hidden[1]).abs().max())


def places() -> dict[str, Any]:
    """Where expected attention believes the next text, and where it is."""
    begins: list[int] = []
    found = {}
    for name in ("expected-attention", "cap"):
        engine = engine_of(press=name, compression_ratio=0.5)
        press: Any = engine.cutter._press
        told = press.inner._begin
        press.inner._begin = lambda tokens, told=told: begins.append(told(tokens)) or begins[-1]  # type: ignore[func-returns-value]
        with torch.inference_mode():
            prefix = engine.look(engine.prepare(photo(), Shot()))
        found[name] = {"begins": sorted(set(begins)), "position": prefix.position, "tokens": prefix.tokens}
        begins.clear()
    return found


def main() -> None:
    torch.manual_seed(0)
    base = score(engine_of(press="none"))
    alone = [score(engine_of(press="snapkv", compression_ratio=0.5, questions=[one])) for one in QUESTIONS]
    together = engine_of(press="snapkv", compression_ratio=0.5, questions=QUESTIONS)
    with torch.inference_mode():
        prefix = together.look(together.prepare(photo(), Shot()))
        answers = together.ask(prefix, together.suffixes)
    each = [
        float(one[sorted(together.words.yes)].logsumexp(0) - one[sorted(together.words.no)].logsumexp(0))
        for one in answers
    ]
    classes = [
        name for name in dir(kvpress)
        if isinstance(getattr(kvpress, name), type) and issubclass(getattr(kvpress, name), kvpress.BasePress)
    ]  # fmt: skip
    with (Path(sys.argv[1])).open("w") as out:
        json.dump(
            {
                "sees_boxes": issubclass(Engine, Detector),
                "one_shot": one_shot(QUESTIONS[0]),
                "base": base,
                "ratio_0": score(engine_of(press="snapkv", compression_ratio=0.0)),
                "presses": presses(base),
                "alone": alone,
                "each": each,
                "together": score(together),
                "attention": weights_of_attention(),
                "text": kept_text(),
                "first_pass": first_pass(),
                "places": places(),
                "wrong": [message(lambda options=options: engine_of(load=False, **options)) for options in WRONG],  # type: ignore[misc]
                "classes": classes,
                "offered": sorted(OFFERED),
                "left_out": sorted(LEFT_OUT),
            },
            out,
        )


if __name__ == "__main__":
    main()
