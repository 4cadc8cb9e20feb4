"""Qwen3-VL on a batch of photos of one shape, with the modules of transformers and without its packing.

transformers takes photos of any shapes as one long row of patches and runs attention photo by photo: right, and too
slow to train with. Here a batch has one shape. tests/vllm/test_mini_vlm.py holds both against each other.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from ops.train.vlm_shape import BEGIN, END, IMAGE, MERGE, OVER, PATCH_PX, TOKEN_PX, TURN


@dataclass(frozen=True)
class Question:
    """A conversation up to its answer: ``ids`` (L,), and where in it the photo's tokens begin."""

    ids: torch.Tensor
    photo_at: int


def ask(words: Qwen2Tokenizer, prompt: str, shape: tuple[int, int], *, photo_first: bool = True) -> Question:
    """The question about a photo of a shape (height, width) in pixels, as the chat template writes it."""
    photo = BEGIN + IMAGE * (shape[0] // TOKEN_PX * (shape[1] // TOKEN_PX)) + END
    parts = (photo, prompt) if photo_first else (prompt, photo)
    text = f"{TURN}user\n{''.join(parts)}{OVER}\n{TURN}assistant\n"
    ids = words.encode(text)
    return Question(torch.tensor(ids), ids.index(words.convert_tokens_to_ids(IMAGE)))


def places(question: Question, shape: tuple[int, int], extra: int) -> torch.Tensor:
    """(3, 1, L + extra): time, row and column of each token; a photo's tokens stand side by side, not in a row.

    Source: Qwen2-VL, arXiv:2409.12191, section 2.1 (M-RoPE).
    """
    rows, columns = shape[0] // TOKEN_PX, shape[1] // TOKEN_PX
    before, after = question.photo_at, len(question.ids) - question.photo_at - rows * columns + extra
    start = torch.arange(before).expand(3, -1)
    grid = torch.stack([
        torch.zeros(rows, columns, dtype=torch.long),
        torch.arange(rows)[:, None].expand(rows, columns),
        torch.arange(columns).expand(rows, columns),
    ])  # fmt: skip
    end = torch.arange(after).expand(3, -1) + before + max(rows, columns)
    return torch.cat([start, grid.reshape(3, -1) + before, end], dim=1)[:, None]


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B, patches, numbers of one): the four of a token stand together, a photo is two equal frames."""
    B, C, H, W = pixels.shape
    x = pixels.reshape(B, C, H // TOKEN_PX, MERGE, PATCH_PX, W // TOKEN_PX, MERGE, PATCH_PX)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, row, column, row within, column within, C, y, x
    x = x.reshape(B, -1, C, 1, PATCH_PX, PATCH_PX).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(B, H * W // PATCH_PX**2, -1)


@cache
def _grid(high: int, wide: int) -> torch.Tensor:
    """(patches, 2): row and column of each, in the order of ``patches``."""
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    both = torch.stack([rows, columns], -1).reshape(high // MERGE, MERGE, wide // MERGE, MERGE, 2)
    return both.permute(0, 2, 1, 3, 4).reshape(-1, 2)


def _positions(visual: torch.nn.Module, high: int, wide: int) -> torch.Tensor:
    """The learned grid, stretched to this one: (patches, width), in the order of ``patches``."""
    side = round(visual.pos_embed.num_embeddings**0.5)
    learned = visual.pos_embed.weight.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = functional.interpolate(learned, size=(high, wide), mode="bilinear", align_corners=True)[0]
    at = _grid(high, wide).to(stretched.device)
    return stretched[:, at[:, 0], at[:, 1]].T


def _turns(head: int, high: int, wide: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (patches, head): half of a head's pairs turn with the row, half with the column."""
    half = head // 2
    speeds = 10_000.0 ** -(torch.arange(0, half, 2, device=device).float() / half)
    angles = (_grid(high, wide).to(device)[:, :, None].float() * speeds).flatten(1)
    return torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def see(net: Qwen3VLForConditionalGeneration, pixels: torch.Tensor, tap: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the eyes make of (B, 3, H, W) in [-1, 1].

    Returns:
        The patches after layer ``tap``, (B, patches, width), and the photo's tokens, (B, tokens, width of the words).
    """
    visual = net.model.visual
    high, wide = pixels.shape[2] // PATCH_PX, pixels.shape[3] // PATCH_PX
    x = functional.linear(patches(pixels), visual.patch_embed.proj.weight.flatten(1), visual.patch_embed.proj.bias)
    x = x + _positions(visual, high, wide)
    heads = visual.blocks[0].attn.num_heads
    B, P, width = x.shape
    cos, sin = _turns(width // heads, high, wide, x.device)
    tapped = x
    for i, block in enumerate(visual.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(B, P, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(_turn(q, cos, sin), _turn(k, cos, sin), v)
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(B, P, width))
        x = x + block.mlp(block.norm2(x))
        if i == tap:
            tapped = x
    return tapped, visual.merger(x.reshape(B * P, width)).reshape(B, P // MERGE**2, -1)


def answer(
    net: Qwen3VLForConditionalGeneration,
    tokens: torch.Tensor,
    question: Question,
    shape: tuple[int, int],
    said: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (B, 1, vocabulary) of the answer; given its token ``said`` (B,), of the next too: (B, 2, vocabulary)."""
    B, T, _ = tokens.shape
    text = net.model.language_model
    ids = question.ids.to(tokens.device).expand(B, -1)
    if said is not None:
        ids = torch.cat([ids, said[:, None]], 1)
    embedded = text.embed_tokens(ids).to(tokens.dtype)
    at = question.photo_at
    embedded = torch.cat([embedded[:, :at], tokens, embedded[:, at + T :]], 1)
    extra = 0 if said is None else 1
    positions = places(question, shape, extra).to(tokens.device).expand(-1, B, -1)
    seen = text(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
    return net.lm_head(seen[:, -1 - extra :])
