"""Device memory that runs out under the ONNX engine: really, on the CPU, under a bound of the process's own memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from configs.model import load_model
from workers.engines import DeviceMemoryError, Runtime
from workers.engines.onnx import Engine

#: A process of its own: the bound cannot be lifted again, and would be everybody's.
SCRIPT = """
import json, resource, sys, threading
import numpy as np
from configs.model import load_model
from workers.batcher import Batcher
from workers.engines.onnx import Engine
from workers.engines import DeviceMemoryError, Runtime
from workers.panel import Member, Panel
from workers.progress import Progress

class Narrow(Engine):
    refused, sizes, causes = [], [], []
    def score(self, inputs):
        try:
            scores = super().score(inputs)
        except DeviceMemoryError as error:
            self.refused.append(len(inputs))
            self.causes.append(str(error.__cause__))
            raise
        self.sizes.append(len(inputs))
        return scores

engine = Narrow(load_model("scout-m"), Runtime("cpu", 128))
engine.load()
dice = np.random.default_rng(1)
inputs = [dice.integers(0, 255, (engine._spec.input_px,) * 2 + (3,), dtype=np.uint8) for _ in range(160)]
alone = [engine.score([one])[0] for one in inputs]
engine.sizes.clear()
batcher = Batcher(Panel("t", [Member(load_model("scout-m"), engine)]), 128, Progress())
batcher.start()
pages = int(open("/proc/self/statm").read().split()[0])
room_bytes = int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room_bytes, resource.RLIM_INFINITY))
scores, _ = batcher.score([(one,) for one in inputs], "bulk")
worst = max(abs(a - b) for (a,), b in zip(scores, alone))
print(json.dumps({"refused": engine.refused, "sizes": engine.sizes, "room": batcher.room, "worst": worst,
                  "causes": engine.causes}))
"""


def test_the_onnx_engine_scores_all_in_smaller_batches() -> None:
    """onnxruntime really fails to allocate; the batch halves until it fits, and each score is what it is alone."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "96"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["refused"][0] == 128
    assert any("Failed to allocate memory for requested buffer" in cause for cause in report["causes"])
    assert sum(report["sizes"]) == 160
    assert max(report["sizes"]) < 128
    assert report["room"] == report["refused"][-1] // 2
    assert report["worst"] < 1e-2


def test_another_error_of_onnxruntime_stays_what_it_is() -> None:
    """Inputs of a wrong size are no lack of memory."""
    engine = Engine(load_model("scout-s"), Runtime("cpu", 4))
    engine.load()
    with pytest.raises(Exception, match="invalid dimensions") as raised:
        engine.score([np.zeros((7, 7, 3), dtype=np.uint8)])
    assert not isinstance(raised.value, DeviceMemoryError)
