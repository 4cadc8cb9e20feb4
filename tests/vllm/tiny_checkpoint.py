"""Writes a Qwen3-VL of random weights into a folder; run as a file, by an interpreter that has transformers and torch.

Some package there calls itself tests too, so that the builder is found by its place and not by its name.
"""

import runpy
import sys
from pathlib import Path

BUILDER = Path(__file__).parents[1] / "engines/tiny_vlm.py"
#: As Qwen's tokenizer has them: one token each.
WORDS = ("Yes", "yes", " Yes", " yes", "No", "no", " No", " no", "<think>", "</think>")

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    model, processor = runpy.run_path(str(BUILDER))["tiny_vlm"](WORDS)
    model.save_pretrained(sys.argv[1])
    processor.save_pretrained(sys.argv[1])
