"""What a vision-language model's one-token answer costs in floating-point operations, counted from its shape.

A product of a matrix with a vector costs 2 operations a number of the matrix. Counted is what the device must do:
a token's embedding is looked up and costs nothing, the head runs for the one answer only, and what merges patches
into tokens runs once a token and not once a patch.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

#: Of Qwen3-VL: pixels along a patch, frames that a patch is deep, patches along a token.
PATCH_PX, PATCH_FRAMES, MERGE = 16, 2, 2
TOKEN_PX = PATCH_PX * MERGE
_COLOURS = 3


class Shape(Struct, frozen=True):
    """A dense Qwen3-VL. Names are those of its config.json."""

    #: The catalogue's row.
    key: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    #: Vision layers whose output also goes into the first language layers.
    deepstack: tuple[int, ...]
    tied: bool = False
    head_dim: int = 128
    vision_heads: int = 16
    vision_positions: int = 2304
    #: Pairs of a head's numbers that are turned by time, by height and by width.
    mrope: tuple[int, int, int] = (24, 20, 20)

    @property
    def language_matrices(self) -> int:
        """Numbers that one token of the prompt is multiplied with."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Numbers that turn the last token into logits; tied to the embedding, they are the embedding's own."""
        return self.hidden * self.vocab

    @property
    def vision_matrices(self) -> int:
        """Numbers that one patch is multiplied with."""
        block = 4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_intermediate
        return self.vision_layers * block + PATCH_PX**2 * PATCH_FRAMES * _COLOURS * self.vision_hidden

    @property
    def merger_matrices(self) -> int:
        """Numbers that the patches of one token, side by side, are multiplied with."""
        wide = self.vision_hidden * MERGE**2
        return (1 + len(self.deepstack)) * wide * (wide + self.hidden)

    @property
    def parameters(self) -> int:
        """All of the matrices: the whole model but for its biases and norms."""
        embeddings = self.head * (1 if self.tied else 2)
        positions = self.vision_positions * self.vision_hidden
        return self.language_matrices + embeddings + self.vision_matrices + self.merger_matrices + positions

    def language_flop(self, tokens: int) -> int:
        """One prompt of ``tokens`` and the answer's first token; attention is causal."""
        scores = self.layers * 2 * 2 * self.heads * self.head_dim * tokens * (tokens + 1) // 2
        return 2 * self.language_matrices * tokens + scores + 2 * self.head

    def vision_flop(self, side_px: int) -> int:
        """One square photo."""
        patches = (side_px // PATCH_PX) ** 2
        scores = self.vision_layers * 2 * 2 * self.vision_hidden * patches**2
        return 2 * self.vision_matrices * patches + 2 * self.merger_matrices * patches // MERGE**2 + scores

    def flop(self, tokens: int, side_px: int) -> int:
        """One question about one square photo, answered by one token."""
        return self.language_flop(tokens) + self.vision_flop(side_px)

    def flop_by_parameters(self, tokens: int, side_px: int) -> int:
        """The rule of thumb: every parameter, embedding included, twice for each token or patch; no attention."""
        vision = self.vision_matrices + self.merger_matrices + self.vision_positions * self.vision_hidden
        language = self.parameters - vision
        return 2 * language * tokens + 2 * vision * (side_px // PATCH_PX) ** 2

    def config(self) -> Mapping[str, Any]:
        """config.json of transformers, but for the numbers of the tokens that stand for photos."""
        return {
            "text_config": {
                "vocab_size": self.vocab,
                "hidden_size": self.hidden,
                "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "max_position_embeddings": 262_144,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": self.tied,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": list(self.mrope),
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "depth": self.vision_layers,
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_intermediate,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.hidden,
                "num_position_embeddings": self.vision_positions,
                "deepstack_visual_indexes": list(self.deepstack),
                "patch_size": PATCH_PX,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": PATCH_FRAMES,
            },
            "tie_word_embeddings": self.tied,
        }


#: Source of the real ones: config.json of Qwen/Qwen3-VL-4B-Instruct, -8B-Thinking and -32B-Instruct.
SHAPES = {
    "4b": Shape(
        key="qwen3-vl-4b-instruct",
        layers=36,
        hidden=2560,
        intermediate=9728,
        heads=32,
        kv_heads=8,
        vocab=151_936,
        vision_layers=24,
        vision_hidden=1024,
        vision_intermediate=4096,
        deepstack=(5, 11, 17),
        tied=True,
    ),
    "8b": Shape(
        key="qwen3-vl-8b-thinking",
        layers=36,
        hidden=4096,
        intermediate=12_288,
        heads=32,
        kv_heads=8,
        vocab=151_936,
        vision_layers=27,
        vision_hidden=1152,
        vision_intermediate=4304,
        deepstack=(8, 16, 24),
    ),
    "32b": Shape(
        key="qwen3-vl-32b-instruct",
        layers=64,
        hidden=5120,
        intermediate=25_600,
        heads=64,
        kv_heads=8,
        vocab=151_936,
        vision_layers=27,
        vision_hidden=1152,
        vision_intermediate=4304,
        deepstack=(8, 16, 24),
    ),
    # Of no model: for trying the benchmark out where there is no GPU.
    "tiny": Shape(
        key="qwen3-vl-4b-instruct",
        layers=2,
        hidden=64,
        intermediate=128,
        heads=2,
        kv_heads=1,
        vocab=1024,
        vision_layers=2,
        vision_hidden=32,
        vision_intermediate=64,
        deepstack=(0,),
        tied=True,
        head_dim=32,
        vision_heads=2,
        vision_positions=64,
        mrope=(6, 5, 5),
    ),
}
