# ruff: noqa: T201 # a command of its own: it prints its figures
"""mini-vlm's teacher: scout-m's network fitted on the same pictures in their own shapes, and what it shows a pupil."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ops.train.fit import augment
from ops.train.nets import LITE0, Scout, scout_m
from ops.train.vlm_pool import SHAPES, Pictures

#: The teacher's blocks up to its last with one place for every 16 pixels: as many as mini-vlm's patches.
MIDDLE = sum(stage[-1] for stage in LITE0[:5])
MIDDLE_CHANNELS = LITE0[4][3]
TOP_CHANNELS = 1280
#: Steps before the clock starts: the first of each shape are slow, while libraries choose how to compute it.
UNTIMED_STEPS = 20


class Desk:
    """Pictures on a device, drawn in batches of one shape."""

    def __init__(self, pictures: Pictures, chosen: np.ndarray, device: torch.device, batch: int) -> None:
        """``chosen`` are places in ``pictures``; the rest is not drawn."""
        self.flat = torch.as_tensor(pictures.flat).to(device)
        self.labels = torch.as_tensor(pictures.labels).float().to(device)
        self.device, self.batch = device, batch
        self.choose(pictures, chosen)

    def choose(self, pictures: Pictures, chosen: np.ndarray) -> None:
        """From now on only these are drawn."""
        of_shape = [chosen[pictures.shapes[chosen] == i] for i in range(len(SHAPES))]
        counts = torch.tensor([float(len(places)) for places in of_shape])
        self.places = [torch.as_tensor(places).to(self.device) for places in of_shape]
        self.shares = counts / counts.sum()

    def pixels(self, places: torch.Tensor, shape: int) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        high, wide = SHAPES[shape]
        rows = self.flat[:, : 3 * high * wide][places].reshape(-1, high, wide, 3)
        return rows.permute(0, 3, 1, 2).float() / 127.5 - 1

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """A batch, altered anew: pixels, labels, place of its shape."""
        shape = int(torch.multinomial(self.shares, 1))
        places = self.places[shape]
        drawn = places[torch.randint(len(places), (self.batch,), device=self.device)]
        return augment(self.pixels(drawn, shape)), self.labels[drawn], shape


@dataclass(frozen=True)
class Lesson:
    """What a pupil is to see in a batch: maps (B, channels, rows, columns), and logits (B,)."""

    middle: torch.Tensor
    top: torch.Tensor
    #: How much each place speaks for roadwork, by the average's weights and by the maximum's: (B, 2, rows, columns).
    places: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def lesson(teacher: Scout, pixels: torch.Tensor) -> Lesson:
    """Each map is standardised over the batch: what a channel's scale is has no meaning."""
    x, middle = pixels.contiguous(memory_format=torch.channels_last), pixels
    for i, layer in enumerate(teacher.features):
        x = layer(x)
        if i == 2 + MIDDLE:  # the stem is three layers
            middle = x
    x = x.float()
    weights = teacher.logit.weight[0].float()
    logits = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1) @ weights + teacher.logit.bias.float()
    found = torch.einsum("bchw,kc->bkhw", x, weights.reshape(2, -1))
    return Lesson(*(functional.batch_norm(y.float(), None, None, training=True) for y in (middle, x, found)), logits)


def fit_teacher(desk: Desk, trunk: Path, seconds: float) -> Scout:
    """EfficientNet-Lite0 from its pre-trained weights; rates as scout-m's (ops/train/fit.py).

    Args:
        desk: what it is fitted on.
        trunk: the pre-trained weights.
        seconds: of fitting, on a GPU without the first UNTIMED_STEPS.
    """
    net = scout_m(trunk).to(desk.device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(
        [{"params": net.features.parameters(), "lr": 4e-4}, {"params": net.logit.parameters(), "lr": 2e-3}],
        weight_decay=0.02,
    )
    rates = [group["lr"] for group in optimiser.param_groups]
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    started, share, step, shown = time.monotonic(), 0.0, 0, []
    while share < 1:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * share))
        pixels, labels, _ = desk.draw()
        with torch.autocast(desk.device.type, torch.bfloat16, enabled=desk.device.type == "cuda"):
            logits = net(pixels.contiguous(memory_format=torch.channels_last)).float()
        loss = functional.binary_cross_entropy_with_logits(logits, labels * 0.92 + 0.04)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        average.update_parameters(net)
        step += 1
        if step == UNTIMED_STEPS and desk.device.type == "cuda":
            torch.cuda.synchronize()
            started = time.monotonic()
        if (step % 10 == 0 and step > UNTIMED_STEPS) or desk.device.type == "cpu":
            shown.append(float(loss.detach()))  # also waits for the device, so that the clock is right
            share = (time.monotonic() - started) / seconds
    print(f"  teacher: {step} steps of {desk.batch}; loss {shown[0]:.3f} to {np.mean(shown[-8:]):.3f}", flush=True)
    return average.module.eval().requires_grad_(requires_grad=False)
