"""Prints what a large bf16 product of matrices reaches on this device, in operations a second: the yardstick.

A file for the interpreter that has vLLM, and imports nothing of the project's. Its arguments: the device, the side of
the square matrices, the seconds to measure for.
"""

import sys
import time
from statistics import median

import torch


def flop_per_s(device: str, side: int, seconds: float) -> float:
    """The median of five shares of ``seconds``, after as long a warm-up: clocks settle under load."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)

    def rate(share_s: float) -> float:
        done = 0
        wait()
        begun_s = time.perf_counter()
        while (took_s := time.perf_counter() - begun_s) < share_s:
            for _ in range(10):
                torch.matmul(left, right, out=out)
            wait()
            done += 10
        return 2.0 * side**3 * done / took_s

    rate(seconds)
    return median(rate(seconds / 5) for _ in range(5))


if __name__ == "__main__":
    print(flop_per_s(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))  # noqa: T201 - what it is for
