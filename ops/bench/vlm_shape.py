"""Writes a Qwen3-VL checkpoint of a given shape without weights: vllm serve DIR --load-format dummy.

A file for the interpreter that has vLLM (python -P: a neighbour is called like a module of Python's), and imports
nothing of the project's. It reads JSON on its standard input:
``folder``, ``config`` (ops.bench.vlm_arithmetic.Shape.config), ``words`` (a text whose words become one token each, as
common words are in the real vocabulary) and ``pixels`` (least and most that a photo is resized to).
"""

import json
import sys
from typing import Any

from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

END_OF_TEXT = "<|endoftext|>"
TURN, OVER = "<|im_start|>", "<|im_end|>"
BEGIN, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
#: The conversation of Qwen3-VL, where it has no tools.
TEMPLATE = (
    f"{{% for turn in messages %}}{TURN}{{{{ turn.role }}}}\n"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    f"{{% if part.type == 'text' %}}{{{{ part.text }}}}{{% else %}}{BEGIN}{IMAGE}{END}{{% endif %}}"
    f"{{% endfor %}}{{% endif %}}{OVER}\n{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)


def write(folder: str, config: dict[str, Any], words: str, pixels: tuple[int, int]) -> None:
    """All files of a checkpoint but its weights."""
    bare = Qwen2Tokenizer(
        vocab={END_OF_TEXT: 0}, merges=[], extra_special_tokens=[TURN, OVER, BEGIN, END, IMAGE, VIDEO]
    )
    lines = [f"system\nuser\nassistant\nYes\nNo\nyes\nno\n{words}"] * 9
    tokenizer = bare.train_new_from_iterator(lines, vocab_size=1000, show_progress=False)
    number = tokenizer.convert_tokens_to_ids
    model = Qwen3VLConfig(
        **config,
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype="bfloat16",
        image_token_id=number(IMAGE),
        video_token_id=number(VIDEO),
        vision_start_token_id=number(BEGIN),
        vision_end_token_id=number(END),
    )
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=number(OVER), pad_token_id=number(END_OF_TEXT)).save_pretrained(folder)
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    grid = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Qwen2VLImageProcessor(size=size, **grid, **half)
    videos = Qwen3VLVideoProcessor(**grid)
    Qwen3VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)


if __name__ == "__main__":
    write(**json.load(sys.stdin))
