# ruff: noqa: T201 # a command of its own: it prints its figures
"""One fit of one network on chosen pictures of a pool that lies on the device."""

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ops.train.nets import Scout


@dataclass(frozen=True)
class Plan:
    """How long and how fast to fit; ``body_rate`` is the learning rate of the pre-trained layers.

    The length is a time, because a lent GPU is: the rates fall to nought over it, however many steps it holds.
    """

    side_px: int
    seconds: float
    batch: int = 128
    body_rate: float = 4e-4
    head_rate: float = 2e-3
    weight_decay: float = 0.02
    smoothing: float = 0.04
    ema: float = 0.998


def normalise(photos: torch.Tensor, side_px: int) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, side, side) in [-1, 1]."""
    x = photos.permute(0, 3, 1, 2).float()
    if x.shape[-1] != side_px:
        x = functional.interpolate(x, size=(side_px, side_px), mode="bilinear", antialias=True)
    return (x - 127.0) / 128.0


def augment(x: torch.Tensor) -> torch.Tensor:
    """Flips, shifts of light and colour, grey, noise and blots, drawn anew for each picture on the device."""
    B, _, H, W = x.shape
    dev = x.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(B, *(shape or (1, 1, 1)), device=dev) * (high - low) + low

    def some(share: float) -> torch.Tensor:
        return (torch.rand(B, 1, 1, 1, device=dev) < share).float()

    x = torch.where(some(0.5) > 0, x.flip(3), x)
    # A shift by a few pixels and a slight zoom; never enough to push an object out.
    grid = functional.affine_grid(
        torch.stack([
            torch.stack([draw(0.93, 1.03, 1), draw(-0.04, 0.04, 1), draw(-0.03, 0.03, 1)], 2).squeeze(1),
            torch.stack([draw(-0.04, 0.04, 1), draw(0.93, 1.03, 1), draw(-0.03, 0.03, 1)], 2).squeeze(1),
        ], 1), [B, 3, H, W], align_corners=False)  # fmt: skip
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * torch.where(some(0.06) > 0, torch.zeros(B, 1, 1, 1, device=dev), draw(0.5, 1.4))
    x = (x + 1) * draw(0.65, 1.35) * draw(0.88, 1.12, 3, 1, 1) - 1
    x = x + draw(-0.15, 0.15) * some(0.5)
    x = x + torch.randn_like(x) * draw(0, 0.06) * some(0.5)
    size = int(H * 0.18)
    for _ in range(2):
        top, left = (torch.randint(0, H - size, (B, 1, 1, 1), device=dev) for _ in range(2))
        rows, cols = torch.arange(H, device=dev).view(1, 1, -1, 1), torch.arange(W, device=dev).view(1, 1, 1, -1)
        hole = (rows >= top) & (rows < top + size) & (cols >= left) & (cols < left + size) & (some(0.12) > 0)
        x = torch.where(hole, draw(-1, 1, 3, 1, 1), x)
    return x.clamp(-1, 1)


def _floats(net: nn.Module) -> list[torch.Tensor]:
    return [value for value in net.state_dict().values() if value.dtype.is_floating_point]


def fit(
    net: Scout,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    chosen: np.ndarray,
    plan: Plan,
    teacher: tuple[Scout, int] | None = None,
) -> Scout:
    """Fits ``net`` and gives its moving average, in evaluation mode.

    Args:
        net: the network; it is changed.
        pixels: (N, H, W, 3) uint8, on the device.
        labels: (N,) float.
        chosen: the pictures to draw from.
        plan: see Plan.
        teacher: a fitted network and its side in pixels; its opinion of the same altered picture then counts 70 %.
    """
    dev = pixels.device
    net = net.to(dev, memory_format=torch.channels_last).train()
    head = list(net.logit.parameters())
    optimiser = torch.optim.AdamW(
        [{"params": net.features.parameters(), "lr": plan.body_rate}, {"params": head, "lr": plan.head_rate}],
        weight_decay=plan.weight_decay,
    )
    rates = [group["lr"] for group in optimiser.param_groups]
    average = copy.deepcopy(net).eval()
    places = torch.as_tensor(chosen, device=dev)
    kept, fresh = _floats(average), _floats(net)
    started, losses, step, share = time.monotonic(), [], 0, 0.0
    while share < 1:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * share))
        drawn = places[torch.randint(len(places), (plan.batch,), device=dev)]
        with torch.no_grad():
            view = augment(normalise(pixels[drawn], max(plan.side_px, teacher[1] if teacher else 0)))
            own = view if view.shape[-1] == plan.side_px else functional.interpolate(
                view, size=(plan.side_px, plan.side_px), mode="bilinear", antialias=True
            )  # fmt: skip
        target = labels[drawn] * (1 - 2 * plan.smoothing) + plan.smoothing
        with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
            logits = net(own.contiguous(memory_format=torch.channels_last)).float()
            loss = functional.binary_cross_entropy_with_logits(logits, target)
            if teacher:
                with torch.no_grad():
                    opinion = teacher[0](view.contiguous(memory_format=torch.channels_last)).float().sigmoid()
                loss = 0.3 * loss + 0.7 * functional.binary_cross_entropy_with_logits(logits, opinion)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        step += 1
        if step % 2 == 0:
            with torch.no_grad():
                torch._foreach_lerp_(kept, fresh, 1 - min(plan.ema, (step + 1) / (step + 10)) ** 2)
        if step % 20 == 0 or dev.type == "cpu":
            losses.append(float(loss.detach()))  # also waits for the device, so that the clock is right
            share = (time.monotonic() - started) / plan.seconds
    shown = " ".join(f"{value:.3f}" for value in losses[:: max(1, len(losses) // 6)])
    print(
        f"  {step} steps of {plan.batch} at {plan.side_px} px in {time.monotonic() - started:.0f} s; loss {shown}",
        flush=True,
    )
    return average.eval()


@torch.no_grad()
def logits_of(net: Scout, photos: np.ndarray | torch.Tensor, side_px: int, device: torch.device) -> np.ndarray:
    """Raw logits of (N, H, W, 3) uint8 photos, in float32."""
    found = []
    for start in range(0, len(photos), 256):
        part = torch.as_tensor(photos[start : start + 256]).to(device)
        found.append(net(normalise(part, side_px).contiguous(memory_format=torch.channels_last)).float().cpu().numpy())
    return np.concatenate(found) if found else np.empty(0, np.float32)
