"""The GPUs that the driver of this machine shows."""

import subprocess

from msgspec import Struct


class Gpu(Struct, frozen=True):
    """One of them, by either of its names."""

    index: str
    uuid: str
    #: 0: it has none of its own.
    memory_bytes: int


def gpus() -> list[Gpu]:
    """All; none where there is no driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],  # noqa: S607 - where the driver put it
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return read_gpus(listed)


def read_gpus(listed: str) -> list[Gpu]:
    """From nvidia-smi's answer to index, uuid and memory.total (MiB, or [N/A])."""
    found = []
    for line in listed.splitlines():
        index, uuid, mebibytes = (field.strip() for field in line.split(","))
        found.append(Gpu(index, uuid, int(mebibytes) * 2**20 if mebibytes.isdigit() else 0))
    return found
