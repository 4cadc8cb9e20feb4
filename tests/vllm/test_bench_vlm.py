"""The benchmark of VLM tiers on a real vLLM, on the processor and a tiny shape: that it counts right, not how fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_bare_and_through_the_fleet(python: str, tmp_path: Path) -> None:
    """Every photo is new to the server, every question is answered, and the fleet loses none."""
    out = tmp_path / "vlm.json"
    out.write_text('{"quality": {"kept": 1}}')
    command = [sys.executable, "-m", "ops.bench.vlm", "--shape", "tiny", "--side-px", "96", "--device", "cpu"]
    command += ["--python", python, "--eager", "--block-size", "32", "--in-flight", "4,12", "--clients", "2"]
    command += ["--warm-up-s", "2", "--window-s", "4", "--windows", "2", "--most-per-s", "500", "--rounds", "1"]
    command += ["--workers", "1", "--worker-in-flight", "12", "--max-batch", "12", "--sleep", "--out", str(out)]
    # Photos are not remembered at all; of the prompt what all have in common may be.
    command += ["--variant", "usual: --enable-prefix-caching", "--variant", "refused: --no-such-flag"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["quality"] == {"kept": 1}
    section = found["bench"]["tiny at 96 px on cpu"]
    assert section["versions"]["vllm"].startswith("0.32.0")
    usual, refused = section["variants"]["usual"], section["variants"]["refused"]
    assert "--no-such-flag" in refused["error"]
    assert not usual["error"]
    assert [point["in_flight"] for point in usual["points"]] == [4, 12]
    for point in (*usual["points"], *(pair["bare"] for pair in usual["pairs"])):
        heard = point["heard"]
        assert heard["failed"] == 0, heard["failure"]
        assert len(heard["photos_per_s"]) == 2
        # The windows are within the run, and what is in flight waits as long as Little's law says.
        assert 0 < sum(heard["photos_per_s"]) * 4 <= heard["answered"] <= heard["photos"]
        assert heard["p50_ms"] <= heard["p99_ms"]
        assert 9 < heard["prompt_tokens"] < 100
        assert point["prefix_hits"] < 0.01
        assert point["photo_hits"] == 0
        assert 0 < point["share"] < point["share_by_parameters"] < 1
        assert point["cores"]
    (pair,) = usual["pairs"]
    assert pair["fleet"]["photos"] >= 40
    assert 0 < pair["ratio"] < 2
    # A level is there when it fell asleep, woke and answered: that needs no GPU.
    assert [slept["level"] for slept in usual["sleeps"]] == [1, 2]


def test_photos_that_repeat_are_seen(python: str, tmp_path: Path) -> None:
    """The counters that must stay low do rise where the same photo is asked about twice."""
    from ops.bench import vlm_load
    from ops.bench.vlm import settings_of, vlm, write_shape
    from ops.bench.vlm_server import parse_variant, served
    from ops.bench.vlm_settings import command, questions

    words = ["--shape", "tiny", "--side-px", "96", "--device", "cpu", "--eager", "--block-size", "32"]
    words += ["--in-flight", "2"]
    params = vlm.make_context("vlm", [*words, "--python", python, "--weights", str(tmp_path)]).params
    options = {name: value for name, value in params.items() if name not in {"variants", "out"}}
    settings = settings_of(**options)
    write_shape(settings)
    variant = parse_variant("remembers: --enable-prefix-caching --mm-processor-cache-gb 1")
    with served(command(settings, variant, tmp_path / "server.toml"), tmp_path / "log", 300) as server:
        ask = vlm_load.Ask(
            url=server.url,
            question=questions(settings, server.url)["own"],
            side_px=96,
            in_flight=2,
            processes=1,
            warm_up_s=0,
            window_s=0.3,
            windows=1,
            most_per_s=300,
        )
        before = server.counters()
        vlm_load.listen(ask, first=5)
        between = server.counters()
        vlm_load.listen(ask, first=5)
        after = server.counters()
    hits = "vllm:mm_cache_hits_total"
    assert between[hits] == before[hits]
    assert after[hits] > between[hits]
    assert after["vllm:prefix_cache_hits_total"] > between["vllm:prefix_cache_hits_total"]
