"""Thousands of bad photos: each is scored or refused with a reason, soon, in memory that does not grow.

``python -m tests.test_bad_photos`` takes them through intake and a tier's own path, several times, and says what came.
"""

import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import Struct

from configs.errors import PhotoError
from configs.model import load_model
from configs.profile import Photos
from producers.intake import Reason, take
from tests.mutants import Mutant, mutants
from workers.engines import Runtime, Shot
from workers.engines.onnx import Engine
from workers.photos import open_photo

ROOT = Path(__file__).parents[1]
PASSES = 3
BATCH = 64
#: A photo that is nothing but large takes as long as it is large; all others are far from it.
LIMIT_S = 2.0
#: What later passes may take on top of the first: some pages that the allocator did not happen to give back.
GROWTH_MIB = 4.0
WANTED = {"scored": {"scored"}, "cut": {"truncated", "not-an-image", "empty"}, "refused": {*get_args(Reason)}}
WANTED["either"] = WANTED["scored"] | WANTED["refused"]


class Passed(Struct):
    """What passes over all of them came to."""

    #: By position: "scored", or the reason.
    fates: list[str]
    #: Processor seconds of intake, decode and prepare, by position, in the last pass.
    seconds: list[float]
    wall_s: list[float]
    #: Resident memory after each pass.
    rss_mib: list[float]
    scores: int = 0


def passed_over(photos: list[Mutant], engine: Engine, side_px: int) -> tuple[list[str], list[float], list[float], int]:
    """One pass: intake, then what a tier does with what intake took; fates, processor seconds, wall seconds, scores."""
    fates, spent_s, wall_s, scores = [], [], [], 0
    waiting: list[Any] = []
    for photo in photos:
        begun_s, begun_wall_s = time.thread_time(), time.perf_counter()
        try:
            taken = take(photo.data, Photos())
        except PhotoError as error:
            fates.append(error.reason)
        else:
            # A tier's path may not fail on what intake took: an error ends this process.
            waiting.append(engine.prepare(open_photo(taken.data, 2 * side_px), Shot()))
            fates.append("scored")
        spent_s.append(time.thread_time() - begun_s)
        wall_s.append(time.perf_counter() - begun_wall_s)
        if len(waiting) == BATCH or photo is photos[-1]:
            # Pixels are pixels: a quarter of them is enough of the model's time.
            logits = engine.score(waiting[::4])
            assert all(map(math.isfinite, logits))
            scores += len(logits)
            waiting = []
    return fates, spent_s, wall_s, scores


def resident_mib() -> float:
    (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


def main() -> None:
    """All passes, in a process of their own."""
    spec = load_model("scout-s")
    engine = Engine(spec, Runtime("cpu", BATCH))
    engine.load()
    engine.warm_up()
    photos = list(mutants())
    fates, rss_mib = [], []
    for _ in range(PASSES):
        fate, spent_s, wall_s, scores = passed_over(photos, engine, spec.input_px)
        fates.append(fate)
        rss_mib.append(resident_mib())
    assert all(fate == fates[0] for fate in fates), "a photo's fate changed from pass to pass"
    sys.stdout.buffer.write(msgspec.json.encode(Passed(fates[0], spent_s, wall_s, rss_mib, scores)))


@pytest.fixture(scope="module")
def corpus() -> list[Mutant]:
    return list(mutants())


@pytest.fixture(scope="module")
def passed() -> Passed:
    command = [sys.executable, "-m", "tests.test_bad_photos"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, check=False)
    # No crash, and no warning of a library either.
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return msgspec.json.decode(done.stdout, type=Passed)


def test_the_corpus_is_large_and_the_same_each_time(corpus: list[Mutant]) -> None:
    """More than 2,000 files, equal for equal seeds and only for those."""
    assert len(corpus) > 2000
    assert list(mutants(1)) == corpus
    assert list(mutants(2)) != corpus
    assert {photo.fate for photo in corpus} == WANTED.keys()


def test_each_is_scored_or_refused_with_a_reason(corpus: list[Mutant], passed: Passed) -> None:
    """Whole photos are scored, cut ones and strangers refused, damaged ones either; nothing else comes of any.

    Cut means before the mark that ends the picture, be it by that mark's last byte: pixels may be whole then, but
    nobody can tell. What follows the mark is not the photo's: cut there, it is whole.
    """
    wrong = Counter(
        (photo.kind, fate) for photo, fate in zip(corpus, passed.fates, strict=True) if fate not in WANTED[photo.fate]
    )
    assert wrong == {}
    assert {*passed.fates} == WANTED["either"] - {"too-many-bytes"}
    assert passed.fates.count("scored") > 1000
    assert passed.scores > 250


def test_each_is_done_soon(corpus: list[Mutant], passed: Passed) -> None:
    """No file takes two seconds of a core, and the middle one takes a hundredth of that."""
    slowest = max(range(len(corpus)), key=lambda i: passed.seconds[i])
    assert passed.seconds[slowest] < LIMIT_S, corpus[slowest].kind
    assert statistics.median(passed.seconds) < LIMIT_S / 100


def test_memory_is_flat(passed: Passed) -> None:
    """After the first pass over all of them further ones take no more memory."""
    assert max(passed.rss_mib[1:]) - passed.rss_mib[0] < GROWTH_MIB, passed.rss_mib


@pytest.mark.faults
def test_a_folder_of_them_through_a_fleet(tmp_path: Path, corpus: list[Mutant]) -> None:
    """300 files, each kind among them: all end as verdicts, or in quarantine for intake's reason; no process ends."""
    by_kind = {photo.kind: photo for photo in corpus}
    rest = [photo for photo in corpus if photo is not by_kind[photo.kind]]
    photos = [*by_kind.values(), *random.Random(1).sample(rest, max(0, 300 - len(by_kind)))]
    folder = tmp_path / "photos"
    folder.mkdir()
    wanted: Counter[str] = Counter()
    for i, photo in enumerate(photos):
        (folder / f"{i:04}{photo.suffix}").write_bytes(photo.data)
        try:
            take(photo.data, Photos())
            wanted["scored"] += 1
        except PhotoError as error:
            wanted[error.reason] += 1
    run = subprocess.run(
        [sys.executable, "-m", "ops.cli", "run", "--photos", str(folder), "--flower-port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    figures: dict[str, Any] = json.loads((tmp_path / "var/report.json").read_text())
    assert figures["settled"] + figures["quarantined"] == figures["admitted"] == len(photos)
    assert figures["settled"] == wanted.pop("scored")
    assert figures["quarantine"] == wanted
    assert figures["problems"] == []
    logs = {log.name: log.read_text() for log in (tmp_path / "var/run").glob("*.log")}
    assert {"scout-s.log", "scout-m.log", "collector.log", "producer.log"} <= logs.keys()
    assert not [name for name, text in logs.items() if "Traceback" in text or '"critical"' in text or '"error"' in text]
    # A process that died would have been started again: each said once that it takes work.
    assert [logs[f"{name}.log"].count("taking work") for name in ("scout-s", "scout-m", "collector")] == [1, 1, 1]


if __name__ == "__main__":
    main()
