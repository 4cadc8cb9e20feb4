# ruff: noqa: T201 # a command of its own: it prints its figures
"""An untrained mini-vlm: python -m ops.train.vlm_shape FOLDER writes its checkpoint, tokenizer and processor.

The shape is Qwen3-VL's, so that vLLM and transformers read it as they read the large ones; every number is small. Most
of the parameters are eyes: a street photo is hard to see, and "Yes" or "No" is easy to say.
"""

import argparse
import copy
from pathlib import Path

import torch
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts"

PATCH_PX = 16
MERGE = 2
#: One token of the language part stands for a square of the photo with this side.
TOKEN_PX = PATCH_PX * MERGE
#: Area that the processor brings a photo to, in square pixels: 320 x 416 at 4:3, 256 x 480 at 16:9, 352 x 352.
AREA_PX = (100 * TOKEN_PX**2, 136 * TOKEN_PX**2)

#: Qwen's, in its order; the first ends a document and pads.
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TURN, OVER, BEGIN, END, IMAGE, VIDEO = (SPECIAL[i] for i in (1, 2, 9, 10, 12, 13))

#: Qwen's conversation, without tools.
TEMPLATE = (
    "{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\\n' }}"
    "{%- if turn.content is string -%}{{ turn.content }}{%- else -%}{%- for part in turn.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- elif part.type == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

#: Words that are one token each, with and without a space before them.
ANSWERS = ("Yes", "No", "yes", "no")
VOCABULARY = 576
LONGEST = 2048


def tokenizer() -> Qwen2Tokenizer:
    """Bytes, Qwen's special tokens, and the pairs of letters of the project's own prompts."""
    bare = Qwen2Tokenizer(vocab={SPECIAL[0]: 0}, merges=[], extra_special_tokens=list(SPECIAL[1:]))
    prompts = [path.read_text(encoding="utf-8") for path in sorted(PROMPTS.glob("*.txt"))]
    words = ["system", "user", "assistant", *ANSWERS, *(" " + word for word in ANSWERS)]
    return bare.train_new_from_iterator([*words * 99, *prompts * 9], vocab_size=VOCABULARY)


def processor() -> Qwen3VLProcessor:
    """What makes numbers of photos and words."""
    size = {"shortest_edge": AREA_PX[0], "longest_edge": AREA_PX[1]}
    middle = [0.5, 0.5, 0.5]
    images = Qwen2VLImageProcessor(
        patch_size=PATCH_PX, merge_size=MERGE, temporal_patch_size=2, image_mean=middle, image_std=middle, size=size
    )
    videos = Qwen3VLVideoProcessor(patch_size=PATCH_PX, merge_size=MERGE)
    return Qwen3VLProcessor(images, tokenizer(), videos, chat_template=TEMPLATE)


def model(reader: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """Random weights in float32, 3.8 million of them."""
    number = reader.convert_tokens_to_ids
    width = 128
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(reader) // 64) * 64,
            "hidden_size": width,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": LONGEST,
            # A head's 32 numbers are turned in 16 pairs: so many by time, by height and by width.
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True,
            },
            "bos_token_id": None,
            "eos_token_id": number(OVER),
            "pad_token_id": number(SPECIAL[0]),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 10,
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_heads": 5,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 256,
            # Each costs a merger of half a million numbers: better spent on layers.
            "deepstack_visual_indexes": [],
        },
        image_token_id=number(IMAGE),
        video_token_id=number(VIDEO),
        vision_start_token_id=number(BEGIN),
        vision_end_token_id=number(END),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    found = Qwen3VLForConditionalGeneration(config).eval()
    found.generation_config.eos_token_id = number(OVER)
    found.generation_config.pad_token_id = number(SPECIAL[0])
    return found


def save(net: Qwen3VLForConditionalGeneration, words: Qwen3VLProcessor, folder: Path) -> int:
    """Writes everything that a server needs, weights in bf16; gives the bytes of all files."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(net).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Writes one, untrained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    words = processor()
    net = model(words.tokenizer)
    total = sum(p.numel() for p in net.parameters())
    print(f"{total} parameters, {save(net, words, args.folder)} bytes; {len(words.tokenizer)} tokens")
    print({word: words.tokenizer.encode(word) for first in ANSWERS for word in (first, " " + first)})


if __name__ == "__main__":
    main()
