"""The shapes of the models that transformers runs.

Source of the values: the conversion scripts of huggingface/transformers (src/transformers/models/*/convert_*.py, named
at each) and, where nothing is said, the defaults of its configuration classes, 5.20.2.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    CLIPImageProcessor,
    DFineConfig,
    DFineForObjectDetection,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    RfDetrConfig,
    RfDetrForObjectDetection,
    RfDetrImageProcessor,
    RTDetrImageProcessor,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from configs.model import ModelSpec
from ops.bench.shape_tokenizers import BART_TOKENS, bart, bert, clip
from workers.engines.pixels import IMAGENET_MEAN, IMAGENET_STD

#: Classes of a checkpoint trained on Objects365 (its own 365 and one that is never used), and on COCO's 91 numbers.
OBJECTS365, COCO, COCO_NUMBERS = 366, 80, 91

#: BART's tokens, 1,024 marks of tasks and places, and the place of the photo.
FLORENCE_TOKENS = 51_290


def build(spec: ModelSpec) -> Any:
    """The model of a row, on torch's default device."""
    return _MODELS[spec.key](spec)


def save(spec: ModelSpec, model: Any, folder: Path) -> None:
    """The model with its processor."""
    model.save_pretrained(folder)
    _processor(spec).save_pretrained(folder)
    if heads := spec.options.get("heads"):
        save_file(_heads(model.config.hidden_size), folder / str(heads))


def _named(spec: ModelSpec, count: int) -> dict[str, Any]:
    """``count`` classes, those of the row first; which number they have does not matter here."""
    names = [*spec.classes, *(f"class {number}" for number in range(len(spec.classes), count))]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _vit(spec: ModelSpec) -> Any:
    """ViT-B/16 at 224 px, two classes, of which natix-network-org/roadwork calls one None."""
    names = ["None", *spec.classes]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return ViTForImageClassification(ViTConfig(**labels))


def _dinov3(_: ModelSpec) -> Any:
    """ViT-H+/16. Source: dinov3_vit/convert_dinov3_vit_to_hf.py; facebookresearch/dinov3 counts 840M parameters."""
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=1280,
            # Ratio 6 of the original, of which SwiGLU takes two thirds.
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
        )
    )


def _heads(width: int) -> dict[str, torch.Tensor]:
    """All three heads of workers.engines.heads, the attentive one with four queries."""
    queries = 4
    return {
        "cls.weight": torch.randn(width),
        "cls.bias": torch.zeros(1),
        "mean.weight": torch.randn(width),
        "mean.bias": torch.zeros(1),
        "attentive.queries": torch.randn(queries, width),
        "attentive.weight": torch.randn(queries * width),
        "attentive.bias": torch.zeros(1),
    }


def _dfine(spec: ModelSpec) -> Any:
    """D-FINE-X. Source: d_fine/convert_d_fine_original_pytorch_checkpoint_to_hf.py, dfine_x_obj365."""
    backbone = {
        "model_type": "hgnet_v2",
        "hidden_sizes": [256, 512, 1024, 2048],
        "stem_channels": [3, 32, 64],
        "stage_in_channels": [64, 128, 512, 1024],
        "stage_mid_channels": [64, 128, 256, 512],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 2, 5, 2],
        "stage_numb_of_layers": [6, 6, 6, 6],
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "out_features": ["stage2", "stage3", "stage4"],
    }
    return DFineForObjectDetection(
        DFineConfig(
            backbone_config=backbone,
            encoder_in_channels=[512, 1024, 2048],
            encoder_hidden_dim=384,
            encoder_ffn_dim=2048,
            decoder_in_channels=[384, 384, 384],
            decoder_n_points=[3, 6, 3],
            **_named(spec, OBJECTS365),
        )
    )


def _rtdetr(spec: ModelSpec) -> Any:
    """RT-DETRv2 with ResNet-50: the defaults, as PekingU/rtdetr_v2_r50vd."""
    return RTDetrV2ForObjectDetection(RTDetrV2Config(**_named(spec, COCO)))


def _rfdetr(spec: ModelSpec) -> Any:
    """RF-DETR-large of 2026, 704 px. Source: rf_detr/convert_rf_detr_weights_to_hf.py."""
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 704,
        "patch_size": 16,
        "num_windows": 2,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
    }
    return RfDetrForObjectDetection(
        RfDetrConfig(
            backbone_config=backbone,
            d_model=256,
            num_queries=300,
            decoder_layers=4,
            decoder_n_points=2,
            decoder_self_attention_heads=8,
            decoder_cross_attention_heads=16,
            **_named(spec, COCO_NUMBERS),
        )
    )


def _grounding(_: ModelSpec) -> Any:
    """Swin-L and BERT-base. Source: mm_grounding_dino/convert_mm_grounding_dino_to_hf.py, large."""
    swin = SwinConfig(
        image_size=384,
        window_size=12,
        embed_dim=192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return MMGroundingDinoForObjectDetection(
        MMGroundingDinoConfig(backbone_config=swin, text_config=BertConfig(), num_feature_levels=5)
    )


def _sam3(_: ModelSpec) -> Any:
    """The defaults, as facebook/sam3, whose image model this is."""
    return Sam3Model(Sam3Config())


def _florence(_: ModelSpec) -> Any:
    """DaViT with BART-large. Source: the vision_config of microsoft/Florence-2-large's config.json."""
    vision = {
        "embed_dim": [256, 512, 1024, 2048],
        "num_heads": [8, 16, 32, 64],
        "num_groups": [8, 16, 32, 64],
        "projection_dim": 1024,
    }
    text = {"model_type": "bart", "vocab_size": FLORENCE_TOKENS, "d_model": 1024}
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=FLORENCE_TOKENS - 1)
    return Florence2ForConditionalGeneration(config)


_MODELS = {
    "natix-roadwork-vit": _vit,
    "dinov3-vith16plus": _dinov3,
    "dinov3-heads": _dinov3,
    "dfine-x": _dfine,
    "night-dfine": _dfine,
    "rtdetrv2-r50": _rtdetr,
    "rf-detr-large": _rfdetr,
    "mm-grounding-dino-large": _grounding,
    "sam3": _sam3,
    "florence-2-large": _florence,
}


def _words(spec: ModelSpec) -> list[str]:
    return sorted({word for prompt in spec.prompts for word in prompt.lower().split()})


def _processor(spec: ModelSpec) -> Any:
    side = {"height": spec.input_px, "width": spec.input_px}
    return _PROCESSORS[spec.key](spec, side)


def _florence_processor(spec: ModelSpec, side: dict[str, int]) -> Any:
    """768 px, stretched; mean and deviation of ImageNet. Source: its preprocessor_config.json."""
    places = [f"<loc_{place}>" for place in range(1000)]
    others = [f"<mark-{number}>" for number in range(FLORENCE_TOKENS - BART_TOKENS - len(places) - 1)]
    tokenizer = bart([*_words(spec), "in", "the", "image"], [*others, *places, "<image>"])
    images = CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    # Of 24 x 24 cells and their mean.
    images.image_seq_length = 577
    return Florence2Processor(images, tokenizer, post_processor_config={"description_with_bboxes_or_polygons": {}})


def _grounding_processor(spec: ModelSpec, _: dict[str, int]) -> Any:
    """The sides are the engine's own."""
    return GroundingDinoProcessor(GroundingDinoImageProcessor(), bert(_words(spec)))


def _sam3_processor(spec: ModelSpec, side: dict[str, int]) -> Any:
    return Sam3Processor(Sam3ImageProcessor(size=side), clip(_words(spec)))


def _zero_to_one(_: ModelSpec, side: dict[str, int]) -> Any:
    """These take pixels of 0 to 1 as they are."""
    return RTDetrImageProcessor(size=side, do_normalize=False)


_PROCESSORS = {
    "natix-roadwork-vit": lambda _, side: ViTImageProcessor(size=side),
    "dinov3-vith16plus": lambda _, side: DINOv3ViTImageProcessor(size=side),
    "dinov3-heads": lambda _, side: DINOv3ViTImageProcessor(size=side),
    "dfine-x": _zero_to_one,
    "night-dfine": _zero_to_one,
    "rtdetrv2-r50": _zero_to_one,
    "rf-detr-large": lambda _, side: RfDetrImageProcessor(size=side),
    "mm-grounding-dino-large": _grounding_processor,
    "sam3": _sam3_processor,
    "florence-2-large": _florence_processor,
}
