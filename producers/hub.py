"""The NATIX test split, streamed from the Hugging Face hub: no download first, no copy on the disk.

The hub's client reads HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT from the environment.
"""

import logging
import queue
import re
import threading
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from configs.errors import SourceError
from producers.parquet import ParquetSource, Shard, read_footer

REPOSITORY = "natix-network-org/roadwork"
#: The client's own time-outs don't bound a name server that doesn't answer, nor its five retries.
LIST_TIMEOUT_S = 15.0
FOOTER_TIMEOUT_S = 30.0

#: data/test-00000-of-00001.parquet, or test/0000.parquet as the hub's own conversion writes it.
_TEST_SPLIT = re.compile(r"(^|/)test([-_.][^/]*\.parquet|\.parquet|/[^/]*\.parquet)$")
_ELSEWHERE = "a copy on the disk works without the hub: give its folder or FILE.parquet instead of natix"

Result = TypeVar("Result")


def open_natix(limit: int | None) -> ParquetSource:
    """Opens the test split of natix-network-org/roadwork.

    Raises:
        SourceError: the hub cannot be reached in LIST_TIMEOUT_S, refuses, or has no such split; cause and remedy in
            one line.
    """
    # The client logs each of its retries; the one line that we end with says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub = HfFileSystem()
    root = f"datasets/{REPOSITORY}"
    files = _within(LIST_TIMEOUT_S, lambda: sorted(hub.find(root)))
    chosen = [file for file in files if _TEST_SPLIT.search(file.removeprefix(root))]
    if not chosen:
        raise SourceError(f"{constants.ENDPOINT}/{root} holds no test-*.parquet any more; {_ELSEWHERE}")

    def opener(file: str) -> Callable[[], pa.NativeFile]:
        return lambda: pa.PythonFile(hub.open(file, "rb"), mode="r")

    def footers() -> list[Shard]:
        return [read_footer(file, opener(file)) for file in chosen]

    shards = _within(FOOTER_TIMEOUT_S, footers)
    note = f"{REPOSITORY}, test split, streamed from {constants.ENDPOINT}"
    return ParquetSource("natix", REPOSITORY, shards, limit, note)


def _within(timeout_s: float, call: Callable[[], Result]) -> Result:
    """What ``call`` returns, if it does so in time."""
    outcome: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again in the caller's thread
            outcome.put(error)

    # A daemon: a name server that never answers must not keep the process from ending.
    threading.Thread(target=work, daemon=True, name="hub").start()
    try:
        result = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise SourceError(f"{constants.ENDPOINT} did not answer in {timeout_s:.0f} s; {_ELSEWHERE}") from None
    if isinstance(result, SourceError):
        raise result
    if isinstance(result, Exception):
        raise SourceError(f"{_cause(result)}; {_ELSEWHERE}") from result
    return result


def _cause(error: Exception) -> str:
    place = f"{constants.ENDPOINT}/datasets/{REPOSITORY}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub may not be asked: unset it"
    # The file system gives FileNotFoundError for a gated or private repository too; the hub itself answers 401 or 403.
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, FileNotFoundError) or status in (401, 403, 404):
        return f"{place} is not there, or not for this account: accept its terms there if it asks, and set HF_TOKEN"
    if status:
        return f"{place} answered with status {status}: try again later"
    return (
        f"cannot reach {constants.ENDPOINT} ({error or type(error).__name__}): check the network, a proxy, HF_ENDPOINT"
    )
