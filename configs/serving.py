"""How a vision-language model is served by vLLM: what its catalogue row knows of it, and what a tier decides.

Names are those of vLLM's own flags where it has one.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

#: The first served tier of a profile listens here unless its profile says otherwise, the next ones after it.
FIRST_PORT = 8100

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]

#: What vLLM may hold the KV cache in; not every release knows all of them (ops.vllm_releases).
KvCacheDtype = Literal[
    "auto",
    "bfloat16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_per_token_head",
    "int8_per_token_head",
    "int4_per_token_head",
    "nvfp4",
]


class Draft(Struct, frozen=True, forbid_unknown_fields=True):
    """Speculative decoding: a small head proposes tokens, the model takes or leaves them."""

    method: Literal["eagle3", "mtp", "ngram"]
    tokens: Positive
    #: Repository of the head; empty where it is part of the model ("mtp"), or is none ("ngram").
    model: str = ""


class Serving(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a model: what it needs of its server, whoever runs it."""

    #: Tokens of one question with its answer, at most.
    max_model_len: Positive = 4096
    #: Tokens of one step of the engine, at most; some models need a floor.
    max_num_batched_tokens: Positive = 8192
    #: Photo area that its processor brings a photo to, in square pixels: least, most; (0, 0): its own bounds. Qwen's
    #: processors are told so as ``size``; those of others cut tiles, and have words of their own for them.
    pixels: tuple[int, int] = (0, 0)
    #: What its processor is told besides, in its own words.
    processor: dict[str, int] = {}
    #: Modalities beside photos that it takes and is never sent: no memory is kept for them.
    unused: tuple[Literal["video", "audio"], ...] = ("video",)
    #: What its chat template is told for each question.
    chat_template: dict[str, bool | str] = {}
    #: vLLM's parser that parts thoughts from the answer; empty: it does not think.
    reasoning_parser: str = ""
    #: Tokens that it may think before it must answer; 0: it answers at once.
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    trust_remote_code: bool = False
    #: Its vision tower can run data parallel where tensor parallelism splits the rest.
    encoder_data_parallel: bool = False
    #: Online quantisation of bf16 weights, by precision, where no checkpoint in that precision is published.
    quantization: dict[str, str] = {}
    draft: Draft | None = None
    #: File of configs/prompts/ without its suffix: what it is asked.
    prompt: str = "roadwork-1"
    #: The oldest release of vLLM that knows the architecture.
    since: str = ""


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a tier: its server's size and bounds, and how it is asked."""

    #: Of loopback; 0: FIRST_PORT and the tier's place among the profile's served ones.
    port: Port = 0
    #: http://HOST:PORT of a server that somebody else runs; the fleet then starts none.
    url: str = ""
    max_num_seqs: Positive = 64
    #: 0: the model's own.
    max_num_batched_tokens: Annotated[int, Meta(ge=0)] = 0
    #: Front-end processes, which read photos and write tokens: one is too slow for a fast device.
    api_processes: Positive = 1
    #: Whole copies of the model, on so many times the tier's devices, behind one port.
    data_parallel: Positive = 1
    prefix_caching: bool = True
    kv_cache_dtype: KvCacheDtype = "auto"
    #: On a processor, which has no share of a device: memory for the KV cache.
    kv_cache_gib: Positive = 1
    #: Prepared photos that are kept, for each front-end process: 0 where each is asked about once.
    mm_processor_cache_gb: Annotated[float, Meta(ge=0)] = 0.0
    #: Tokens of a KV block; 0: vLLM's choice. A prefix is found again in whole blocks only.
    block_size: Annotated[int, Meta(ge=0)] = 0
    #: Without CUDA graphs and torch.compile: it starts sooner and runs slower.
    eager: bool = False
    #: KV blocks outlive the server in LMCache, and beyond its memory in a Valkey of their own (ops.lmcache).
    lmcache: bool = False
    #: Not healthy by then: its start has failed.
    start_within_s: Seconds = 900.0

    #: Questions of one worker process that its server has at once, at most.
    in_flight: Positive = 64
    #: For one photo: its questions, their retries and the pauses between them.
    timeout_s: Seconds = 60.0
    #: Longest side of the photo that is sent, shrunk by the worker; 0: as stored.
    sent_px: Annotated[int, Meta(ge=0)] = 0
    #: Probability of all tokens but yes and no, above which the answer is no vote.
    max_outside: Annotated[float, Meta(ge=0, le=1)] = 0.5

    #: Of a tier that sleeps: so many items waiting wake it, or one that waits for so long.
    wake_items: Positive = 32
    wake_after_s: Seconds = 2.0
    #: Awake, it stays so for this long before another may take its place.
    awake_s: Seconds = 20.0
