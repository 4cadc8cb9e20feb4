"""What every engine must keep, asked of each of them alike."""

from typing import Any

import pytest
from PIL import Image

from tests.engines.checkpoints import photos, scores_of
from workers.engines import Engine


def holds(engine: Engine, pictures: list[Image.Image] | None = None, **scoring: Any) -> list[float | None]:
    """One score a photo, in order, the same each time and in any company; returns them."""
    pictures = pictures or photos(7)
    scores = scores_of(engine, pictures, **scoring)
    assert len(scores) == len(pictures)
    again = scores_of(engine, pictures, **scoring)
    assert scores == pytest.approx(again, abs=1e-5)
    backwards = scores_of(engine, pictures[::-1], **scoring)
    assert scores == pytest.approx(backwards[::-1], abs=1e-3)
    alone = [scores_of(engine, [picture], **scoring)[0] for picture in pictures]
    assert scores == pytest.approx(alone, abs=1e-3)
    assert scores_of(engine, [], **scoring) == []
    return scores
