"""What transformers says of a checkpoint and photos: run as a file, by an interpreter that has both.

python reference.py FOLDER PROMPT PHOTO...: a line of JSON each, log P(yes), log P(no) and the probability of the rest.
"""

import json
import sys

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")

if __name__ == "__main__":
    folder, prompt, *paths = sys.argv[1:]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    number = processor.tokenizer.convert_tokens_to_ids
    for path in paths:
        photo = {"type": "image", "image": Image.open(path).convert("RGB")}
        turn = {"role": "user", "content": [photo, {"type": "text", "text": prompt}]}
        inputs = processor.apply_chat_template(
            [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logprobs = model(**inputs).logits[0, -1].log_softmax(-1)
        yes, no = (logprobs[[number(word) for word in words]].logsumexp(0).item() for words in (YES, NO))
        outside = 1 - torch.tensor([yes, no]).exp().sum().item()
        sys.stdout.write(json.dumps({"score": yes - no, "outside": outside}) + "\n")
