"""The campaign's photos: small rendered scenes with their labels, and now and then a file that is no photo."""

import csv
import io
from pathlib import Path

from configs.errors import DiskError
from producers.scenes import DEMO_SEEDS, render

#: Small ones: the campaign is about delivery, and a photo's pixels cost more than its delivery.
SIZE_PX = (256, 144)
SCENES = 300
#: Every so many photos one is cut off in the middle: it must end in quarantine, whatever dies.
CUT_EVERY = 60


def write_photos(folder: Path) -> list[int]:
    """Writes the photos and their manifest; their labels by position.

    Raises:
        DiskError: the folder cannot be written.
    """
    labels = []
    try:
        folder.mkdir(parents=True)
        with (folder / "manifest.csv").open("w", newline="") as file:
            manifest = csv.writer(file)
            manifest.writerow(["file", "label", "source"])
            for i, seed in enumerate(DEMO_SEEDS[:SCENES]):
                image, label = render(seed)
                buffer = io.BytesIO()
                image.resize(SIZE_PX).save(buffer, "JPEG", quality=85)
                data = buffer.getvalue()
                name = f"{i:04d}.jpg"
                (folder / name).write_bytes(data[: len(data) // 2] if i % CUT_EVERY == CUT_EVERY - 1 else data)
                # Two origins, so that windows of origins are told apart.
                manifest.writerow([name, label, f"camera-{i % 2}"])
                labels.append(label)
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}") from error
    return labels
