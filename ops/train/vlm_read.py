"""mini-vlm as its server runs it, through transformers: the real processor, the question as the fleet puts it."""

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from configs.prompt import load_prompt
from ops.train.vlm_fit import PROMPT
from workers.yes_no import NO, YES, Words, read


class Reader:
    """A checkpoint in float32, which is what a server on a CPU holds it in."""

    def __init__(self, folder: Path) -> None:
        self._net = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(folder)
        # Photo first, as workers.question asks.
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": load_prompt(PROMPT)}]}
        self._text = self._processor.apply_chat_template([turn], add_generation_prompt=True)
        self.words = Words(*(frozenset(self._tokens(spellings)) for spellings in (YES, NO)))

    def _tokens(self, spellings: tuple[str, ...]) -> list[int]:
        found = [self._processor.tokenizer.encode(text, add_special_tokens=False) for text in spellings]
        return [tokens[0] for tokens in found if len(tokens) == 1]

    @torch.inference_mode()
    def read(self, photo: Image.Image) -> tuple[float, float]:
        """Log-odds of yes against no of an RGB photo of any size, and the probability of all other words.

        Raises:
            ValueError: the answer is no number.
        """
        inputs = self._processor(text=[self._text], images=[photo], return_tensors="pt")
        logprobs = self._net(**inputs, logits_to_keep=1).logits[0, -1].log_softmax(-1)
        reading = read({i: float(logprobs[i]) for i in self.words.all}, self.words, "chosen")
        if reading is None or reading.outside is None:
            raise ValueError("the answer is no number")
        return reading.score, reading.outside
