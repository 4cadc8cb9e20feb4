"""Writes a config.json of the real kind and shape for each VLM of the catalogue, and nothing of its weights.

Run as a file, by the interpreter that has vLLM: FOLDER, then KEY=PRECISION for each. Shapes are the published ones as
far as they are known here; of Qwen3.5 and later, and of InternVL3.5, the library's own defaults. Models that come with
code of their own get a stand-in for it, which holds figures and does nothing.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import (
    InternVLConfig,
    Llama4Config,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

#: How each published checkpoint in few bits says so.
QUANTISED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "w4a16": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group", "symmetric": True},
            }
        },
    },
}

#: A configuration that some checkpoints bring as code of their own.
CODE = """from transformers import PretrainedConfig


class Published(PretrainedConfig):
    model_type = "{kind}"

    def __init__(self, **values):
        parts = [name for name in ("text_config", "llm_config", "vision_config") if name in values]
        for name in parts:
            setattr(self, name, PretrainedConfig(**values.pop(name)))
        super().__init__(**values)
"""


def qwen3_vl(hidden: int, inner: int, layers: int, heads: int, *, vision: int = 1152) -> PretrainedConfig:
    """Qwen3-VL, dense."""
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
    return Qwen3VLConfig(text_config=text, vision_config={"hidden_size": vision, "out_hidden_size": hidden})


def qwen3_vl_moe(hidden: int, expert: int, layers: int, heads: int) -> PretrainedConfig:
    """Qwen3-VL of 128 experts."""
    text = {"hidden_size": hidden, "moe_intermediate_size": expert, "num_hidden_layers": layers, "num_experts": 128}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151_936}
    text |= {"num_experts_per_tok": 8, "intermediate_size": 3 * hidden}
    return Qwen3VLMoeConfig(text_config=text, vision_config={"out_hidden_size": hidden})


def with_code(kind: str, architecture: str, **values: Any) -> dict[str, Any]:
    """A configuration whose class comes with the checkpoint."""
    return {
        "model_type": kind,
        "architectures": [architecture],
        "auto_map": {"AutoConfig": "configuration.Published"},
        **values,
    }


QWEN2 = {
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152_064,
    "max_position_embeddings": 32_768,
}
MOLMO = {"model_type": "molmo2_text", "num_key_value_heads": 8, "head_dim": 128, "num_attention_heads": 32}
MOLMO |= {"num_hidden_layers": 36, "vocab_size": 151_936, "max_position_embeddings": 36_864}
PHI = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24}
PHI |= {"num_key_value_heads": 8, "vocab_size": 200_064, "max_position_embeddings": 131_072}

#: Of each row: its configuration, the architecture that it names, and how its checkpoint in few bits says so.
SHAPES: dict[str, tuple[Any, str, dict[str, str]]] = {
    "qwen3-vl-4b-instruct": (
        qwen3_vl(2560, 9728, 36, 32, vision=1024),
        "Qwen3VLForConditionalGeneration",
        {"fp8": "fp8"},
    ),
    "qwen3-vl-8b-thinking": (qwen3_vl(4096, 12_288, 36, 32), "Qwen3VLForConditionalGeneration", {"fp8": "fp8"}),
    "qwen3-vl-32b-instruct": (qwen3_vl(5120, 25_600, 64, 64), "Qwen3VLForConditionalGeneration", {"fp8": "fp8"}),
    "qwen3-vl-32b-thinking": (qwen3_vl(5120, 25_600, 64, 64), "Qwen3VLForConditionalGeneration", {"fp8": "fp8"}),
    "qwen3-vl-30b-a3b-thinking": (
        qwen3_vl_moe(2048, 768, 48, 32),
        "Qwen3VLMoeForConditionalGeneration",
        {"fp8": "fp8"},
    ),
    "qwen3-vl-235b-a22b-thinking": (
        qwen3_vl_moe(4096, 1536, 94, 64),
        "Qwen3VLMoeForConditionalGeneration",
        {"fp8": "fp8", "int4": "awq"},
    ),
    "qwen3.5-122b-a10b": (Qwen3_5MoeConfig(), "Qwen3_5MoeForConditionalGeneration", {"fp8": "fp8", "int4": "gptq"}),
    "qwen3.6-35b-a3b": (Qwen3_5MoeConfig(), "Qwen3_5MoeForConditionalGeneration", {"fp8": "fp8"}),
    "qwen3.6-27b": (Qwen3_5Config(), "Qwen3_5ForConditionalGeneration", {"fp8": "fp8"}),
    "qwen3.8-27b": (Qwen3_5Config(), "Qwen3_5ForConditionalGeneration", {"fp8": "fp8"}),
    "qwen2.5-vl-72b": (
        Qwen2_5_VLConfig(text_config=QWEN2, vision_config={"out_hidden_size": 8192}),
        "Qwen2_5_VLForConditionalGeneration",
        {"int4": "awq"},
    ),
    "llama-4-scout": (Llama4Config(), "Llama4ForConditionalGeneration", {"fp8": "w4a16", "int4": "w4a16"}),
    "internvl3.5-38b": (InternVLConfig(), "InternVLForConditionalGeneration", {}),
    "internvl3-78b": (
        with_code(
            "internvl_chat",
            "InternVLChatModel",
            llm_config={"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **QWEN2},
            vision_config={"hidden_size": 3200, "num_attention_heads": 25, "image_size": 448, "patch_size": 14},
            downsample_ratio=0.5,
            min_dynamic_patch=1,
            max_dynamic_patch=12,
        ),
        "InternVLChatModel",
        {"int4": "awq"},
    ),
    "molmo2-4b": (
        with_code(
            "molmo2",
            "Molmo2ForConditionalGeneration",
            text_config={"hidden_size": 2560, "intermediate_size": 9728, **MOLMO},
        ),
        "",
        {},
    ),
    "molmo2-8b": (
        with_code(
            "molmo2",
            "Molmo2ForConditionalGeneration",
            text_config={"hidden_size": 4096, "intermediate_size": 12_288, **MOLMO},
        ),
        "",
        {},
    ),
    "phi-4-multimodal": (with_code("phi4mm", "Phi4MMForCausalLM", **PHI), "", {}),
    "ovis2-34b": (
        {
            "model_type": "ovis",
            "architectures": ["Ovis"],
            "llm_config": {"model_type": "qwen2", **QWEN2, "hidden_size": 5120, "num_attention_heads": 40},
            "visual_tokenizer_config": {"model_type": "aimv2_visual_tokenizer"},
            "conversation_formatter_class": "QwenConversationFormatter",
            "hidden_size": 5120,
        },
        "",
        {"int4": "gptq"},
    ),
}


def write(folder: Path, key: str, precision: str) -> None:
    """One row's, in one precision."""
    config, architecture, quantised = SHAPES[key]
    values = dict(config) if isinstance(config, dict) else config.to_dict() | {"architectures": [architecture]}
    if precision in quantised:
        values["quantization_config"] = QUANTISED[quantised[precision]]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    if "auto_map" in values:
        (folder / "configuration.py").write_text(CODE.format(kind=values["model_type"]))
    special = ["<think>", "</think>", "<|im_end|>", *VISION, "<IMG_CONTEXT>", "<img>", "</img>"]
    tokenizer = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[], extra_special_tokens=special)
    tokenizer.save_pretrained(folder)
    if architecture.startswith("Qwen"):
        patch_px = 14 if "Qwen2_5" in architecture else 16
        images = Qwen2VLImageProcessor(patch_size=patch_px, merge_size=2)
        # Bounds of the library's own, far above the rows': who is not told otherwise has them.
        videos = Qwen3VLVideoProcessor(patch_size=patch_px, merge_size=2)
        kind = Qwen2_5_VLProcessor if "Qwen2_5" in architecture else Qwen3VLProcessor
        kind(images, tokenizer, videos).save_pretrained(folder)


if __name__ == "__main__":
    for pair in sys.argv[2:]:
        name, _, bits = pair.partition("=")
        write(Path(sys.argv[1]) / name, name, bits)
