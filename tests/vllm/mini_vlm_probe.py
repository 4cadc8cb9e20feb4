"""What training computes of the shipped mini-vlm, beside what transformers does: run by an interpreter that has torch.

python mini_vlm_probe.py FOLDER PROMPT, with the project on its path: a line of JSON for each shape and order.
"""

import json
import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ops.train.vlm_forward import answer, ask, see

#: (height, width) of two of the shapes that training uses (ops.train.vlm_pool).
SHAPES = ((256, 480), (416, 320))

if __name__ == "__main__":
    folder, prompt = sys.argv[1:]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    dice = np.random.default_rng(3)
    for shape in SHAPES:
        photo = Image.fromarray(dice.integers(0, 255, (*shape, 3), dtype=np.uint8))
        for first in (True, False):
            parts = [{"type": "image", "image": photo}, {"type": "text", "text": prompt}]
            turn = {"role": "user", "content": parts if first else parts[::-1]}
            inputs = processor.apply_chat_template(
                [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            question = ask(processor.tokenizer, prompt, shape, photo_first=first)
            pixels = torch.tensor(np.array(photo))[None].permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                whole = model(**inputs).logits[0, -1]
                batched = answer(model, see(model, pixels, 0)[1], question, shape)[0, 0]
            said = {
                "same_words": inputs["input_ids"][0].tolist() == question.ids.tolist(),
                "furthest": float((whole - batched).abs().max()),
                "largest": float(whole.abs().max()),
            }
            sys.stdout.write(json.dumps(said) + "\n")
