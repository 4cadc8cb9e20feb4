"""A Qwen3-VL of two small layers with its processor, built and saved with the library's own classes."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from workers.engines.agent_dialogue import AGAIN, Box, confirm_question, name_question

IMAGE, VIDEO, BEGIN, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
TURN, OVER = "<|im_start|>", "<|im_end|>"

#: Qwen's conversation, without tools.
TEMPLATE = (
    "{%- for turn in messages -%}{{ '" + TURN + "' + turn.role + '\\n' }}"
    "{%- if turn.content is string -%}{{ turn.content }}{%- else -%}{%- for part in turn.content -%}"
    "{{ part.text if part.type == 'text' else '" + BEGIN + IMAGE + END + "' }}"
    "{%- endfor -%}{%- endif -%}{{ '" + OVER + "\\n' }}{%- endfor -%}"
    "{{ '" + TURN + "assistant\\n' if add_generation_prompt }}"
)


def tiny_vlm(words: Sequence[str] = ()) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """Random weights: it babbles.

    Args:
        words: each is one token, beside the tokenizer's own.
    """
    reader = tokenizer()
    reader.add_tokens(list(words))
    number = reader.convert_tokens_to_ids
    width = 64
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(reader),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            # A head's 32 numbers are turned in 16 pairs: so many by time, by height and by width.
            # Interleaved, vLLM must be told; transformers always does it.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "bos_token_id": None,
            "eos_token_id": number(OVER),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=number(IMAGE),
        video_token_id=number(VIDEO),
        vision_start_token_id=number(BEGIN),
        vision_end_token_id=number(END),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = number(OVER)
    size: dict[str, Any] = {"shortest_edge": 32**2, "longest_edge": 128**2}
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=size)
    videos = Qwen3VLVideoProcessor(patch_size=16, merge_size=2)
    processor = Qwen3VLProcessor(images, reader, videos, chat_template=TEMPLATE)
    return model, processor


def tokenizer() -> Qwen2Tokenizer:
    """Bytes, the pairs of what it will be asked, and what Qwen has besides."""
    special = [TURN, OVER, BEGIN, END, IMAGE, VIDEO]
    bare = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[], extra_special_tokens=special)
    box = Box("traffic cone", (0.0, 0.0, 1.0, 1.0), 1.0)
    return bare.train_new_from_iterator([name_question(8, []), confirm_question([box]), AGAIN] * 9, vocab_size=600)


def teach(model: Any, processor: Any, lessons: Sequence[tuple[Image.Image, str, str]], steps: int) -> None:
    """Shows it photos, questions and their answers until it knows them by heart.

    Args:
        lessons: each with its photo, its question and the answer to learn.
        steps: of the optimiser; one lesson each, in turn.
    """
    ready = [_lesson(processor, *lesson) for lesson in lessons]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of operations this small, more threads only wait for each other: ten times slower
    model.model.visual.requires_grad_(requires_grad=False)  # what it answers hangs on the question
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for step in range(steps):
        optimiser.zero_grad()
        model(**ready[step % len(ready)]).loss.backward()
        optimiser.step()
    model.eval()
    torch.set_num_threads(threads)


def _lesson(processor: Any, photo: Image.Image, question: str, answer: str) -> Any:
    asked = {"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": question}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    shape: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    whole = processor.apply_chat_template([asked, said], **shape)
    start = processor.apply_chat_template([asked], add_generation_prompt=True, **shape)["input_ids"].shape[1]
    whole["labels"] = whole["input_ids"].clone()
    whole["labels"][:, :start] = -100  # the loss is of the answer only
    return whole
