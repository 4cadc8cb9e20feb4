"""A file that only its owner may read, written in one step."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 in one step: nobody sees half of it, or sees it before its mode is set.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
