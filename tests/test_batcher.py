"""The device thread and the batches it makes."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from PIL import Image

from tests.fault_engines import solo
from workers.batcher import GOOD_BATCHES
from workers.batcher import Batcher as PanelBatcher
from workers.engines import DeviceMemoryError, Engine, EngineAwayError, Shot
from workers.panel import ContractError
from workers.progress import Progress
from workers.scorer import OVERDUE


class Echo:
    """A test's engine: the score of x is x; records the batches, can be held, can fail."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.away = False

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        return photo

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(inputs))
        self.gate.wait(10)
        if self.away:
            raise EngineAwayError("away on purpose")
        if "bad" in inputs:
            raise RuntimeError("bad input")
        if "short" in inputs:
            return [0.0]
        return list(inputs)


class Batcher(PanelBatcher):
    """Of a panel of one, whose inputs and outcomes stand for themselves."""

    def __init__(self, engine: Engine, max_batch: int, progress: Progress, bulk_share: float = 0.2) -> None:
        super().__init__(solo(engine), max_batch, progress, bulk_share)

    def score(self, inputs: Sequence[Any], lane: str, due_s: Sequence[float] = ()) -> tuple[list[Any], float]:
        outcomes, device_s = super().score([(one,) for one in inputs], lane, due_s)
        return [outcome[0] if isinstance(outcome, tuple) else outcome for outcome in outcomes], device_s


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


class Narrow(Echo):
    """Has memory for ``fits`` inputs at once."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        if len(inputs) > self.fits:
            raise DeviceMemoryError(f"no memory for {len(inputs)}")
        return super().score(inputs)


@pytest.fixture
def narrow() -> Iterator[tuple[Batcher, Narrow]]:
    engine = Narrow(3)
    batcher = Batcher(engine, 8, Progress())
    batcher.start()
    yield batcher, engine
    batcher.stop()


def test_a_batch_that_does_not_fit_is_halved(narrow: tuple[Batcher, Narrow]) -> None:
    """All scores come back in order, nobody hears of it, and the smaller room is remembered."""
    batcher, engine = narrow
    inputs = [float(i) for i in range(20)]
    assert batcher.score(inputs, "bulk")[0] == inputs
    assert [len(batch) for batch in engine.batches] == [2] * 10
    assert batcher.room == 2


def test_several_works_are_halved_together(narrow: tuple[Batcher, Narrow]) -> None:
    """Works that waited side by side in a batch that did not fit keep their order and their lanes."""
    batcher, engine = narrow
    works = [([1.0, 2.0, 3.0], "bulk"), ([4.0, 5.0, 6.0, 7.0], "bulk"), ([8.0, 9.0], "live")]
    assert together(batcher, engine, *works) == [inputs for inputs, _ in works]
    assert engine.batches[1] == [8.0, 9.0]
    assert [x for batch in engine.batches[1:] for x in batch] == [8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_the_room_grows_back(narrow: tuple[Batcher, Narrow]) -> None:
    """After enough batches that filled it the room doubles, up to max_batch and never above."""
    batcher, engine = narrow
    batcher.score([1.0] * 8, "bulk")
    engine.fits = 100
    engine.batches.clear()
    batcher.score([1.0] * (2 * GOOD_BATCHES + 4 * GOOD_BATCHES + 80), "bulk")
    sizes = [len(batch) for batch in engine.batches]
    assert sorted(set(sizes)) == [2, 4, 8]
    assert sizes.index(4) in (GOOD_BATCHES - 4, GOOD_BATCHES - 3)
    assert batcher.room == 8


def test_one_input_that_does_not_fit_harms_nobody(narrow: tuple[Batcher, Narrow]) -> None:
    """It alone has no score, and says why; an engine that is away says so for each input."""
    batcher, engine = narrow
    engine.fits = 0
    (alone,), _ = batcher.score([1.0], "bulk")
    assert isinstance(alone, DeviceMemoryError)
    engine.fits = 8
    assert batcher.score([1.0, 2.0], "bulk")[0] == [1.0, 2.0]
    engine.away = True
    assert all(isinstance(outcome, EngineAwayError) for outcome in batcher.score([1.0, 2.0, 3.0], "bulk")[0])


def test_an_input_whose_deadline_comes_in_the_queue_costs_no_device_time(batcher: Batcher, engine: Echo) -> None:
    """Of three inputs that wait, the overdue one never reaches the engine; the others are scored, in order."""
    results: list[Any] = []
    engine.gate.clear()
    first = threading.Thread(target=batcher.score, args=([0.0], "bulk"))
    first.start()
    while not engine.batches:
        time.sleep(0.001)
    now_s = time.monotonic()
    due_s = [now_s + 60, now_s + 0.05, math.inf]
    second = threading.Thread(target=lambda: results.extend(batcher.score([1.0, 2.0, 3.0], "bulk", due_s)[0]))
    second.start()
    time.sleep(0.1)
    engine.gate.set()
    first.join(10)
    second.join(10)
    assert results == [1.0, OVERDUE, 3.0]
    assert engine.batches[1:] == [[1.0, 3.0]]


def test_bulk_has_its_share_while_live_never_runs_dry(engine: Echo) -> None:
    """One device batch in five is bulk's; a lone live input beside bulk still goes first."""
    batcher = Batcher(engine, 4, Progress(), bulk_share=0.2)
    works = [([100.0] * 4, "live") for _ in range(20)] + [([1.0] * 4, "bulk") for _ in range(10)]
    batcher.start()
    together(batcher, engine, *works)
    order = ["live" if batch[0] == 100.0 else "bulk" for batch in engine.batches[1:]]
    assert order[:25] == (["live"] * 4 + ["bulk"]) * 5
    engine.batches.clear()
    together(batcher, engine, *([([1.0] * 8, "bulk")] * 3), ([100.0], "live"))
    assert engine.batches[1][0] == 100.0
    batcher.stop()


def test_the_device_is_watched_and_those_who_wait_for_it_are_not(engine: Echo) -> None:
    """A long queue is no stall of the threads in it; a device that hangs is one."""
    progress = Progress()
    batcher = Batcher(engine, 1, progress)
    batcher.start()
    worst_s = 0.0

    def claim() -> None:
        with progress.in_hand():
            batcher.score([1.0], "bulk")

    slow = engine.score

    def score(inputs: Sequence[Any]) -> Sequence[float | None]:
        time.sleep(0.05)
        return slow(inputs)

    engine.score = score  # type: ignore[method-assign]
    threads = [threading.Thread(target=claim) for _ in range(20)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        worst_s = max(worst_s, progress.stalled_s())
        time.sleep(0.005)
    assert len(engine.batches) == 20
    assert worst_s < 0.6
    assert progress.stalled_s() == 0
    engine.gate.clear()
    hung = threading.Thread(target=claim)
    hung.start()
    time.sleep(0.7)
    assert progress.stalled_s() > 0.6
    engine.gate.set()
    hung.join(10)
    batcher.stop()
