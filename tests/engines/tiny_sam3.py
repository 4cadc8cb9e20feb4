"""A SAM 3 of a few layers and its processor, built and saved with the library's own classes."""

from typing import Any

import torch
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

SIDE_PX = 112

PROMPTS = {"traffic cone": 1.0, "construction worker": 0.8, "road barrier": 0.5}

#: What a catalogue row becomes for it.
SMALL: dict[str, Any] = {"input_px": SIDE_PX, "least_score": 0.0, "prompts": PROMPTS}


def sam3() -> tuple[Sam3Model, Sam3Processor]:
    """Random weights, large enough that photos and phrases differ in their scores."""
    reader = tokenizer()
    width: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    layers: dict[str, Any] = {**width, "num_hidden_layers": 2}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "image_size": SIDE_PX,
                "pretrain_image_size": SIDE_PX // 2,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
                **layers,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            "vocab_size": len(reader),
            "projection_dim": 16,
            "max_position_embeddings": 32,
            "bos_token_id": reader.bos_token_id,
            "eos_token_id": reader.eos_token_id,
            **layers,
        },
        geometry_encoder_config={**width, "num_layers": 1},
        detr_encoder_config={**width, "num_layers": 2},
        detr_decoder_config={**width, "num_layers": 2, "num_queries": 10},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    model = Sam3Model(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(8)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    return model, Sam3Processor(Sam3ImageProcessor(size=size), reader)


def tokenizer() -> CLIPTokenizer:
    """CLIP's kind, its pairs learned from the prompts."""
    letters = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=letters).train_new_from_iterator(list(PROMPTS) * 10, vocab_size=600)
