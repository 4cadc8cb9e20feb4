"""natix-fleet run --profile vlm-cpu as a user types it: two scouts and a vision-language model in a real vLLM."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from configs.profile import load_profile
from producers.admitted import read_journal
from tests.test_fleet import processes_in
from tests.vllm.real_server import START_S
from workers.verdicts import VerdictDatabase

PHOTOS = 40


def test_three_tiers_from_photos_to_report(python: str, tmp_path: Path) -> None:
    """It ends with 0, the account balances, every tier voted, and no process stays behind."""
    profile = load_profile("vlm-cpu")
    (served,) = [tier for tier in profile.tiers if tier.name == "mini-vlm"]
    command = [sys.executable, "-m", "ops.cli", "run", "--profile", "vlm-cpu"]
    done = subprocess.run(
        [*command, "--photos", f"rendered:{PHOTOS}", "--flower-port", "0"],
        cwd=tmp_path,
        env={**os.environ, "NATIX_FLEET_PYTHON_VLLM": python},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S + 200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(rf"account: admitted {PHOTOS} = verdicts {PHOTOS} \+ quarantined 0; lost 0", done.stdout)
    report = json.loads((tmp_path / "var/report.json").read_text())
    assert (report["admitted"], report["lost"], report["counted_twice"], report["problems"]) == (PHOTOS, 0, 0, [])
    assert processes_in(tmp_path) == []
    (journal,) = [read_journal(path) for path in (tmp_path / "var/run/journal").iterdir()]
    source = journal.header.source
    with VerdictDatabase(f"sqlite:///{tmp_path / 'var/run/verdicts.db'}", create=False) as database:
        rows = [row for i in sorted(database.ids(source)) if (row := database.row(source, i))]
    votes = [vote for row in rows for vote in row["votes"]]
    assert {vote.tier for vote in votes} == {tier.name for tier in profile.tiers}
    # It was asked, and what it says differs from photo to photo.
    last = [vote for vote in votes if vote.tier == served.name]
    assert {vote.weight for vote in last} == {served.weight}
    assert len({round(vote.p, 6) for vote in last}) == len(last)
    assert [row["tier"] for row in rows].count(served.name) == len(last)
