"""Runs a transformers image classifier whose classes are exclusive, such as natix-network-org/roadwork, a ViT-B/16."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import Runtime, Shot
from workers.engines.pixels import batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find


class Engine:
    """One classifier on one device. A row that names none of its classes abstains."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)

    def load(self) -> None:
        """Loads the weights, and from their processor's configuration how photos are resized and normalised.

        Raises:
            ConfigError: they are missing or no classifier's, the classifier lacks one of the row's classes or has no
                other, or it takes photos of another size.
        """
        path = find(self._spec)
        model = pretrained(
            self._spec, lambda: AutoModelForImageClassification.from_pretrained(path, local_files_only=True)
        )
        processor = pretrained(self._spec, lambda: AutoImageProcessor.from_pretrained(path, local_files_only=True))
        ids = {name: i for i, name in model.config.id2label.items()}
        if missing := [name for name in self._spec.classes if name not in ids]:
            known = ", ".join(ids)
            raise ConfigError(
                f"model {self._spec.key!r}: {path} knows no class {', '.join(missing)}; it has {known[:200]}"
            )
        self._yes = [ids[name] for name in self._spec.classes]
        self._no = sorted(set(ids.values()) - set(self._yes))
        if not self._no:
            raise ConfigError(f"model {self._spec.key!r}: all classes of {path} mean roadwork: none is left against it")
        side_px = (processor.size.height, processor.size.width) if processor.size else (self._spec.input_px,) * 2
        if side_px != (self._spec.input_px,) * 2:
            raise ConfigError(
                f"model {self._spec.key!r}: the processor of {path} resizes to {side_px}, input_px is "
                f"{self._spec.input_px}: only whole photos squashed to a square are known here"
            )
        self._resample = Image.Resampling(processor.resample)
        plain = not processor.do_normalize
        self._mean = (0.0, 0.0, 0.0) if plain else tuple(processor.image_mean)
        self._std = (1.0, 1.0, 1.0) if plain else tuple(processor.image_std)
        self._model = place(model, self._dtype, self._runtime)

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        grey = self.prepare(Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127)), Shot())
        if grey is not None:
            self.score([grey] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels | None:  # noqa: ARG002 - the contract's
        """The photo as a square, squashed as in the model's training; None where no class means roadwork."""
        return square(photo, self._spec.input_px, self._resample) if self._yes else None

    def score(self, inputs: Sequence[Pixels]) -> list[float | None]:
        """The log-odds of the row's classes against all others, one a photo, in their order.

        With P = softmax over all classes, log(P / (1 - P)) of a set is logsumexp of its logits less that of the rest.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        scores: list[float | None] = []
        for part in parts(inputs, self._runtime.max_batch):
            with inference():
                pixels = batch(part, self._runtime.device, self._dtype, self._mean, self._std)
                logits = self._model(pixel_values=pixels).logits.float()
                odds = torch.logsumexp(logits[:, self._yes], 1) - torch.logsumexp(logits[:, self._no], 1)
                scores += odds.cpu().tolist()
        return scores
