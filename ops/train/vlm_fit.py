# ruff: noqa: T201 # a command of its own: it prints its figures
"""Fits mini-vlm: it must answer as label and teacher do, and its eyes must see what the teacher sees."""

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from configs.prompt import load_prompt
from ops.train.nets import Scout
from ops.train.vlm_forward import Question, answer, ask, see
from ops.train.vlm_pool import SHAPES
from ops.train.vlm_shape import MERGE, OVER, PATCH_PX, TOKEN_PX, model
from ops.train.vlm_teacher import MIDDLE_CHANNELS, TOP_CHANNELS, Desk, Lesson, lesson

PROMPT = "roadwork-1"
#: The layer of the eyes that is held against the teacher's middle.
TAP = 5
#: What the label counts for against the teacher's opinion, and how far from sure it is taken to be.
LABEL, SMOOTHING = 0.3, 0.04
#: Of the eyes; the words have little to learn and learn it faster.
RATE, WORDS_RATE, WEIGHT_DECAY, WARM_STEPS = 1e-3, 2e-3, 0.05, 150
EMA = 0.998


class Asked:
    """The one question in every shape, photo first and photo last, and its two answers."""

    def __init__(self, words: Qwen2Tokenizer) -> None:
        prompt = load_prompt(PROMPT)
        self.first: list[Question] = [ask(words, prompt, shape) for shape in SHAPES]
        self.last: list[Question] = [ask(words, prompt, shape, photo_first=False) for shape in SHAPES]
        self.yes, self.no, self.over = (words.encode(word)[0] for word in ("Yes", "No", OVER))


class Projections(nn.Module):
    """From what mini-vlm sees to what the teacher sees; thrown away afterwards."""

    def __init__(self, net: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        eyes = net.config.vision_config
        self.middle = nn.Linear(eyes.hidden_size, MIDDLE_CHANNELS)
        self.top = nn.Linear(eyes.out_hidden_size, TOP_CHANNELS)
        self.places = nn.Linear(eyes.out_hidden_size, 2)

    def forward(self, tapped: torch.Tensor, tokens: torch.Tensor, taught: Lesson, shape: int) -> torch.Tensor:
        """Mean squared distances, added up."""
        high, wide = SHAPES[shape]
        rows, columns = high // TOKEN_PX, wide // TOKEN_PX
        # Patches come token by token, the teacher's places row by row.
        middle = taught.middle.reshape(len(tokens), MIDDLE_CHANNELS, rows, MERGE, columns, MERGE)
        middle = middle.permute(0, 2, 4, 3, 5, 1).reshape(len(tokens), high * wide // PATCH_PX**2, -1)
        return (
            functional.mse_loss(self.middle(tapped).float(), middle)
            + functional.mse_loss(self.top(tokens).float(), taught.top.flatten(2).transpose(1, 2))
            + functional.mse_loss(self.places(tokens).float(), taught.places.flatten(2).transpose(1, 2))
        )


def untrained(words: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """The model at a start that suits its few numbers: large models start with smaller weights."""
    net = model(words).float()
    eyes = net.model.visual
    for name, weight in net.named_parameters():
        if weight.ndim >= 2 and "embed_tokens" not in name and "pos_embed" not in name:
            within = name.endswith(("proj.weight", "linear_fc2.weight", "o_proj.weight", "down_proj.weight"))
            depth = len(eyes.blocks) if "visual.blocks" in name else 1
            nn.init.trunc_normal_(weight, std=(weight[0].numel() * (2 * depth if within else 1)) ** -0.5)
    return net


def fit_student(
    desk: Desk,
    words: Qwen2Tokenizer,
    teacher: Scout,
    seconds: float,
    each_minute: Callable[[Qwen3VLForConditionalGeneration], None],
) -> Qwen3VLForConditionalGeneration:
    """Fits one for a time, and gives its moving average in float32."""
    asked = Asked(words)
    net = untrained(words).to(desk.device).train()
    projections = Projections(net).to(desk.device)
    fitted = [*net.named_parameters(), *projections.named_parameters()]
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p for name, p in fitted if ("language_model" in name) is of_words and (p.ndim >= 2) is wide],
                "rate": WORDS_RATE if of_words else RATE,
                "weight_decay": WEIGHT_DECAY if wide else 0.0,
            }
            for of_words in (False, True)
            for wide in (False, True)
        ],
        betas=(0.9, 0.98),
    )
    average = copy.deepcopy(net).eval().requires_grad_(requires_grad=False)
    kept, fresh = list(average.parameters()), list(net.parameters())
    started, share, step, shown, minutes = time.monotonic(), 0.0, 0, [], 0
    while share < 1:
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / WARM_STEPS) * (0.51 + 0.49 * math.cos(math.pi * share))
        pixels, labels, shape = desk.draw()
        with torch.autocast(desk.device.type, torch.bfloat16, enabled=desk.device.type == "cuda"):
            taught = lesson(teacher, pixels)
            tapped, tokens = see(net, pixels, TAP)
            seen = projections(tapped, tokens, taught, shape)
            question = (asked.last if step % 4 == 0 else asked.first)[shape]
            said = torch.where(labels > 0.5, asked.yes, asked.no)
            logits = answer(net, tokens, question, SHAPES[shape], said).float()
        p = LABEL * (labels * (1 - 2 * SMOOTHING) + SMOOTHING) + (1 - LABEL) * taught.logits.sigmoid()
        odds = logits[:, 0].log_softmax(-1)
        right = -(p * odds[:, asked.yes] + (1 - p) * odds[:, asked.no]).mean()
        ended = functional.cross_entropy(logits[:, 1], torch.full_like(said, asked.over))
        loss = right + 0.1 * ended + 0.5 * seen
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(kept, fresh, 1 - min(EMA, step / (step + 10)))
        if step % 10 == 0 or desk.device.type == "cpu":
            shown.append((float(right.detach()), float(seen.detach())))  # also waits for the device
            share = (time.monotonic() - started) / seconds
            if time.monotonic() - started > 60 * (minutes + 1):
                minutes += 1
                print(f"  step {step}: answer {_recent(shown, 0)}, eyes {_recent(shown, 1)}", flush=True)
                each_minute(average)
    print(f"  student: {step} steps of {desk.batch}: answer {_recent(shown, 0)}, eyes {_recent(shown, 1)}", flush=True)
    return average


def _recent(shown: list[tuple[float, float]], which: int) -> str:
    return f"{np.mean([pair[which] for pair in shown[-20:]]):.3f}"


@torch.no_grad()
def scores(
    net: Qwen3VLForConditionalGeneration, words: Qwen2Tokenizer, flat: torch.Tensor, shapes: np.ndarray
) -> np.ndarray:
    """Log P(Yes) - log P(No) of pictures (N, ROW_BYTES) uint8 on the model's device."""
    asked, found = Asked(words), np.empty(len(flat), np.float32)
    for shape, (high, wide) in enumerate(SHAPES):
        for part in np.array_split(np.flatnonzero(shapes == shape), max(1, (shapes == shape).sum() // 128)):
            if len(part):
                rows = flat[torch.as_tensor(part, device=flat.device), : 3 * high * wide]
                pixels = rows.reshape(-1, high, wide, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
                logits = answer(net, see(net, pixels, TAP)[1], asked.first[shape], (high, wide))[:, 0]
                found[part] = (logits[:, asked.yes] - logits[:, asked.no]).float().cpu().numpy()
    return found
