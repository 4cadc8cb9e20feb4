"""Writes a Qwen3-VL of random weights whose layers are wide enough to quantise in groups of 128; run as a file."""

import runpy
import sys
from pathlib import Path

BUILDER = Path(__file__).parents[1] / "engines/tiny_vlm.py"
WIDTH = 256
#: One token each, so that P can be compared.
WORDS = ("Yes", "No")

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    small, processor = runpy.run_path(str(BUILDER))["tiny_vlm"](WORDS)
    config = small.config
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
    for name, value in (sizes | {"head_dim": 64}).items():
        setattr(config.text_config, name, value)
    config.text_config.rope_parameters["mrope_section"] = [12, 10, 10]
    config.vision_config.out_hidden_size = WIDTH
    model = type(small)(config).bfloat16()
    model.generation_config = small.generation_config
    model.save_pretrained(sys.argv[1])
    processor.save_pretrained(sys.argv[1])
