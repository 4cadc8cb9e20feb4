"""Runs YOLOE, a YOLO that is asked for things in words, with the words' embeddings made before.

The text encoder that makes them is a download of its own, and a worker fetches nothing. So they lie in a file beside
the checkpoint, made once where there is a network, with the library itself:

    model = ultralytics.YOLOE("yoloe-26x-seg.pt")
    model.set_classes(["traffic cone", "excavator"])
    model.save_prompt_embeddings("embeddings.npz")

They pass through a layer of the checkpoint: another checkpoint needs its own, and the library refuses the wrong ones.
"""

from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import ultralytics as yolo

# After the engine's file: it tells the library to stay off the network.
from ultralytics import YOLOE  # isort: skip


class Engine(yolo.Engine):
    """One YOLOE on one device, asked for the row's prompts."""

    # Prompts overlap: "a cone" and "a traffic cone" are one thing.
    agnostic = True

    @staticmethod
    def wanted(spec: ModelSpec) -> dict[str, float]:
        """The row's prompts, each with its weight."""
        return spec.prompts

    def open(self, path: Path) -> Any:
        """The library's model with the embeddings as its classes; raises whatever the library does.

        Raises:
            ConfigError: there is no file of embeddings.
        """
        made = path.parent / str(self._spec.options.get("embeddings", "embeddings.npz"))
        if not made.is_file():
            raise ConfigError(f"there is no {made}; workers/engines/yoloe.py says how it is made")
        model = YOLOE(path)
        model.load_prompt_embeddings(made)
        return model.model
