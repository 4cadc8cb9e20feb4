"""One message of a conversation with a served model."""

import base64
from typing import Any, Literal

from msgspec import Struct


class Turn(Struct, frozen=True):
    """What is said, and by whom."""

    role: Literal["user", "assistant"]
    text: str
    #: JPEG, which the text speaks of; empty: none.
    photo: bytes = b""

    def message(self) -> dict[str, Any]:
        """As OpenAI's chat API has it: the photo first, as a data URL."""
        if not self.photo:
            return {"role": self.role, "content": self.text}
        url = "data:image/jpeg;base64," + base64.b64encode(self.photo).decode("ascii")
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.text}]
        return {"role": self.role, "content": parts}
