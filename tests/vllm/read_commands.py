"""Reads commands as the real vLLM does: its parser, then the configuration that its engine would be built from.

Run as a file, by the interpreter that has vLLM. Reads {name: argv} from stdin, argv from behind ``serve``; writes to
the file of its argument {name: what came of it}, and under "fields" the names of a chat question's fields.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")

from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # type: ignore[import-not-found]
from vllm.multimodal import MULTIMODAL_REGISTRY  # type: ignore[import-not-found]
from vllm.usage.usage_lib import UsageContext  # type: ignore[import-not-found]

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args  # type: ignore[import-not-found]
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args  # type: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]


class RefusedError(Exception):
    """The parser's own last line."""


class Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """Says what argparse would print before it ends the process."""

    def error(self, message: str) -> Any:
        """Of a wrong flag or value."""
        raise RefusedError(message)


def photo_tokens(model: Any) -> int:
    """The most tokens that one photo comes to in the model's own processor; 0: the folder has none."""
    if (
        not (Path(model.model) / "preprocessor_config.json").exists()
        and not (Path(model.model) / "processor_config.json").exists()
    ):
        return 0
    info = MULTIMODAL_REGISTRY.create_processor(model).info
    return int(info.get_mm_max_tokens_per_item(model.max_model_len, {"image": 1})["image"])


def read(argv: list[str]) -> dict[str, Any]:
    """What vLLM understood, or in ``refused`` why not, and in ``stage`` where."""
    stage = "parser"
    try:
        arguments = make_arg_parser(Parser()).parse_args(argv)
        arguments.model = arguments.model_tag
        validate_parsed_serve_args(arguments)
        stage = "engine"
        engine = AsyncEngineArgs.from_cli_args(arguments)
        config = engine.create_engine_config(UsageContext.OPENAI_API_SERVER)
        stage = "processor"
        tokens = photo_tokens(config.model_config)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is what the test is about
        return {"stage": stage, "refused": f"{type(error).__name__}: {error}"}
    model, photos = config.model_config, config.model_config.multimodal_config
    return {
        "stage": "built",
        "photo_tokens": tokens,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "logprobs_mode": str(model.logprobs_mode),
        "max_logprobs": model.max_logprobs,
        "limits": {name: photos.get_limit_per_prompt(name) for name in ("image", "video", "audio")},
        "processor": photos.mm_processor_kwargs,
        "encoder": str(photos.mm_encoder_tp_mode),
        "sequences": config.scheduler_config.max_num_seqs,
        "batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "data_parallel": config.parallel_config.data_parallel_size,
        "executor": arguments.distributed_executor_backend,
        "api_processes": arguments.api_server_count,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "memory_share": config.cache_config.gpu_memory_utilization,
        "draft": config.speculative_config
        and [config.speculative_config.method, config.speculative_config.num_speculative_tokens],
        "connector": config.kv_transfer_config
        and [
            config.kv_transfer_config.kv_connector,
            config.kv_transfer_config.kv_role,
            config.kv_transfer_config.kv_connector_extra_config,
        ],
        "reasoning": config.structured_outputs_config.reasoning_parser,
        "chat_template": arguments.default_chat_template_kwargs,
    }


if __name__ == "__main__":
    found = {name: read(argv) for name, argv in json.load(sys.stdin).items()}
    found["fields"] = {"stage": "built", "fields": sorted(ChatCompletionRequest.model_fields)}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
