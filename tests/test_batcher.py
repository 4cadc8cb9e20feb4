"""The device thread and the batches it makes."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from PIL import Image

from workers.batcher import Batcher, ContractError
from workers.progress import Progress


class Echo:
    """A test's engine: the score of x is x; records the batches, can be held, can fail."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image) -> Any:
        return photo

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(inputs))
        self.gate.wait(10)
        if "bad" in inputs:
            raise RuntimeError("bad input")
        if "short" in inputs:
            return [0.0]
        return list(inputs)


@pytest.fixture
def engine() -> Echo:
    return Echo()


@pytest.fixture
def batcher(engine: Echo) -> Iterator[Batcher]:
    batcher = Batcher(engine, 8, Progress())
    batcher.start()
    yield batcher
    engine.gate.set()
    batcher.stop()


def together(batcher: Batcher, engine: Echo, *works: tuple[list[Any], str]) -> list[Any]:
    """Submits works while the device is busy, so that they wait side by side; their results in order."""
    results: list[Any] = [None] * len(works)

    def submit(i: int, inputs: list[Any], lane: str) -> None:
        try:
            results[i] = batcher.score(inputs, lane)[0]
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[i] = error

    engine.gate.clear()
    first = threading.Thread(target=batcher.score, args=([0.0], "bulk"))
    first.start()
    while not engine.batches:
        time.sleep(0.001)
    threads = []
    for i, (inputs, lane) in enumerate(works):
        thread = threading.Thread(target=submit, args=(i, inputs, lane))
        thread.start()
        threads.append(thread)
        while sum(len(q) for q in batcher._waiting.values()) < i + 1:
            time.sleep(0.001)
    engine.gate.set()
    for thread in (first, *threads):
        thread.join(10)
    return results


def test_scores_come_back_in_order(batcher: Batcher) -> None:
    """More inputs than a device batch holds are split and come back whole."""
    inputs = [float(i) for i in range(30)]
    assert batcher.score(inputs, "bulk")[0] == inputs


def test_waiting_works_are_merged(batcher: Batcher, engine: Echo) -> None:
    """Three works of three make device batches of eight and one, by one thread."""
    results = together(batcher, engine, ([1.0, 2.0, 3.0], "bulk"), ([4.0, 5.0, 6.0], "bulk"), ([7.0, 8.0, 9.0], "bulk"))
    assert results == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    assert [len(batch) for batch in engine.batches] == [1, 8, 1]
    assert len(engine.threads) == 1


def test_live_work_goes_first(batcher: Batcher, engine: Echo) -> None:
    """A live photo waits for the device batch in hand and for no other."""
    together(batcher, engine, ([float(i) for i in range(8)], "bulk"), ([100.0], "live"))
    assert engine.batches[1][0] == 100.0


def test_an_error_reaches_those_whose_inputs_were_there(batcher: Batcher, engine: Echo) -> None:
    """Works of one failed device batch all hear of it; the next batch goes on."""
    results = together(batcher, engine, (["bad"], "bulk"), ([1.0], "bulk"))
    assert all(isinstance(result, RuntimeError) for result in results)
    assert batcher.score([2.0], "bulk")[0] == [2.0]


def test_the_contract_is_checked(batcher: Batcher) -> None:
    """An engine that returns too few scores is an error that prints both numbers."""
    with pytest.raises(ContractError, match="1 scores for 2 inputs"):
        batcher.score(["short", 1.0], "bulk")


def test_nothing_to_score(batcher: Batcher) -> None:
    """An empty claim does not touch the device."""
    assert batcher.score([], "bulk") == ([], 0.0)
