"""The shape of Depth Anything 3's metric model, from the package's own configuration (depth_anything_3/configs)."""

import json
from pathlib import Path
from typing import Any

import torch
from depth_anything_3.cfg import create_object, load_config
from depth_anything_3.registry import MODEL_REGISTRY
from omegaconf import OmegaConf
from safetensors.torch import save_file

from configs.model import ModelSpec

_NAMES = {"da3-metric-large": "da3metric-large"}


def build(spec: ModelSpec) -> Any:
    """The model of a row, on the CPU: the package computes with what it builds."""
    with torch.device("cpu"):
        return create_object(load_config(MODEL_REGISTRY[_NAMES[spec.key]]))


def save(spec: ModelSpec, model: Any, folder: Path) -> None:
    """config.json and model.safetensors, laid out as the hub has them."""
    name = _NAMES[spec.key]
    config = OmegaConf.to_container(load_config(MODEL_REGISTRY[name]))
    (folder / "config.json").write_text(json.dumps({"model_name": name, "config": config}))
    weights = {f"model.{key}": weight.contiguous() for key, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
