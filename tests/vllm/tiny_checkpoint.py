"""Writes a Qwen3-VL of random weights into a folder; run as a file, by an interpreter that has transformers and torch.

python tiny_checkpoint.py FOLDER [thinking]: one that thinks, as far as its template and its tokens go.
Some package there calls itself tests too, so that the builder is found by its place and not by its name.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

BUILDER = Path(__file__).parents[1] / "engines/tiny_vlm.py"
#: As Qwen's tokenizer has them: one token each.
WORDS = ("Yes", "yes", " Yes", " yes", "No", "no", " No", " no", "<think>", "</think>")


def lean(model: Any, reader: Any) -> None:
    """It leans to yes or no, as the photo has it, and never says white space, which random weights repeat for ever."""
    rows = model.get_input_embeddings().weight.data
    rows[[number for number in range(len(reader)) if not reader.decode([number]).strip()]] = 0
    rows[[reader.convert_tokens_to_ids(word) for word in WORDS[:8]]] *= 8


def think(processor: Any) -> None:
    """Its turn begins with a thought."""
    begin = "assistant\\n' if add_generation_prompt"
    assert begin in processor.chat_template
    processor.chat_template = processor.chat_template.replace(begin, begin.replace("\\n'", "\\n<think>\\n'"))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    model, processor = runpy.run_path(str(BUILDER))["tiny_vlm"](WORDS)
    lean(model, processor.tokenizer)
    if sys.argv[2:] == ["thinking"]:
        think(processor)
    model.save_pretrained(sys.argv[1])
    processor.save_pretrained(sys.argv[1])
