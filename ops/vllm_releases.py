"""The releases of vLLM that the fleet knows, and what each lacks: found in their sources, held by tests/vllm."""

import subprocess
from collections.abc import Sequence

from msgspec import Struct

from configs.errors import ConfigError

#: Asked of an interpreter; the build for processors calls itself VERSION+cpu.
_ASK = "from importlib.metadata import version; print(version('vllm').partition('+')[0])"
_ASK_WITHIN_S = 30.0


class Release(Struct, frozen=True):
    """What a release lacks of what the others have, as far as a server or a question could ask for it."""

    name: str
    #: Flags of ``vllm serve`` that end it with "unrecognized arguments".
    flags: frozenset[str]
    #: By flag, values that end it with "invalid choice".
    values: dict[str, frozenset[str]]
    #: Fields of a chat question that it ignores without a word: POST /v1/chat/completions. Their only reader is
    #: tests/vllm/test_commands.py, which holds them to what the release itself knows.
    fields: frozenset[str]
    #: Environment that its servers on a GPU want.
    env: dict[str, str] = {}


#: Gone from every release here; much of what is written about vLLM names them.
GONE = frozenset(
    {
        "--swap-space",
        "--speculative-model",
        "--num-speculative-tokens",
        "--use-v2-block-manager",
        "--guided-decoding-backend",
        "--num-scheduler-steps",
        "--disable-log-requests",
    }
)
#: Names of methods, which vLLM never had as values.
NEVER = frozenset({"fp4", "int4"})

RELEASES = {
    release.name: release
    for release in (
        # For torch 2.13.
        Release(
            "0.32.0",
            flags=GONE | {"--calculate-kv-scales", "--max-num-partial-prefills", "--override-attention-dtype"},
            values={"--kv-cache-dtype": NEVER},
            fields=frozenset({"guided_choice"}),
        ),
        # For torch 2.11.
        Release(
            "0.22.1",
            flags=GONE
            | {"--mm-processor-device", "--max-num-queued-reqs", "--sleep-mode-offload-cudagraph", "--watermark"},
            values={"--kv-cache-dtype": NEVER | {"int4_per_token_head"}},
            fields=frozenset({"guided_choice", "logprob_token_ids"}),
            # Else its engine joins the photos of a step on all cores, which spin until the next: 0.4 to 0.6 times as
            # fast (docs/vlm.md). The newer release loads its weights on many cores, and then keeps to one by itself.
            env={"OMP_NUM_THREADS": "1"},
        ),
    )
}
NEWEST = "0.32.0"


class GpuOnly(Struct, frozen=True):
    """A flag that a server is refused on a processor, and in which words.

    Only tests/vllm/test_commands.py reads it: a processor can read all of a profile's command but for these flags, and
    refuses each in just these words.
    """

    flag: str
    words: str


GPU_ONLY = (GpuOnly("--enable-sleep-mode", "Sleep mode is not supported on current platform"),)


def installed_release(python: str) -> str:
    """The release of vLLM that an interpreter has.

    Raises:
        ConfigError: it has none, or one that the fleet does not know.
    """
    try:
        asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_WITHIN_S, check=True)  # noqa: S603 - the operator's
    except (OSError, subprocess.SubprocessError):
        raise ConfigError(f"{python} has no vLLM: see ops/environments/vllm.txt, on a processor vllm-cpu.txt") from None
    release = asked.stdout.strip()
    if release not in RELEASES:
        raise ConfigError(f"{python} has vLLM {release}; the fleet knows {', '.join(RELEASES)}")
    return release


def require(release: str, argv: Sequence[str], since: str = "") -> None:
    """Whether a release has what a command asks for.

    Args:
        release: of vLLM.
        argv: of the command.
        since: the oldest release that knows the model; empty: all that the fleet knows do.

    Raises:
        ConfigError: it lacks the model, a flag or a value, or it is none that the fleet knows.
    """
    if release not in RELEASES:
        raise ConfigError(f"vLLM {release} is not known here: {', '.join(RELEASES)} are")
    if since and _number(release) < _number(since):
        raise ConfigError(f"vLLM {release} does not know this model, {since} is the first that does")
    lacks = RELEASES[release]
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag in lacks.flags:
            raise ConfigError(f"vLLM {release} has no {flag}")
        if value in lacks.values.get(flag, ()):
            raise ConfigError(f"vLLM {release} does not know {flag} {value}")


def _number(release: str) -> list[int]:
    return [int(part) for part in release.split(".")]
