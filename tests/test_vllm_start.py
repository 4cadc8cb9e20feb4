"""What natix-fleet vllm start, up and run find of each other, and vllm status of any server; no vLLM is needed."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from configs.errors import BusyError, ConfigError
from configs.profile import Profile, load_profile
from ops.lmcache import PORT
from ops.lock import RunLock
from ops.vllm_children import Servers, find_servers
from ops.vllm_lock import start_lock, starting
from ops.vllm_server import PYTHON_VARIABLE
from ops.vllm_start import stop
from ops.vllm_status import server_status
from tests.small_vlm import small_vlm
from tests.test_cli import FLEET, refuses, run
from tests.vllm.real_server import free_port
from workers.served import KEY_VARIABLE

VLM = "qwen3-vl-4b-instruct"
PROFILE = """\
name = "{name}"
[[tiers]]
name = "vlm"
model = "{model}"
residency = "sleep"
[tiers.server]
port = {port}
block_size = 32
lmcache = {lmcache}
"""
#: Until its input ends.
HOLDS = "import sys; from ops.vllm_lock import start_lock; start_lock(sys.argv[1]).take(); print(); sys.stdin.read()"
STARTS = """\
import sys; from ops.vllm_lock import starting
with starting({"vlm": sys.argv[1]}, sys.argv[2]): print(flush=True); sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an interpreter that claims to have vLLM and could never start one."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.32.0\n")
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(file: str, port: int, model: str = VLM, lmcache: str = "false") -> Profile:
    """A profile of one tier that sleeps, as it is in a file here."""
    text = PROFILE.format(name=file.removesuffix(".toml"), port=port, model=model, lmcache=lmcache)
    Path(file).write_text(text)
    return load_profile(file)


@contextmanager
def somebody_holds(profile_name: str) -> Iterator[None]:
    """Another process that holds the lock of vllm start."""
    with somebody(HOLDS, profile_name):
        yield


@contextmanager
def somebody(code: str, *arguments: str) -> Iterator[None]:
    """Another process, from its first line until the end."""
    argv = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        yield
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize(
    "theirs", ["natix-fleet up --profile other.toml", "natix-fleet vllm start --profile mine.toml"]
)
@pytest.mark.parametrize("ours", [("vllm", "start"), ("up",), ("run", "--photos", "rendered:1")])
def test_servers_that_somebody_starts_are_not_started_again(here: Path, ours: tuple[str, ...], theirs: str) -> None:
    """Nobody listens yet, and yet the port and the memory are taken, whoever it is; LMCache's port may be as well."""
    profile = written("mine.toml", free_port(), lmcache="true")
    url = profile.server_url(profile.tiers[0])
    with somebody(STARTS, url, theirs), socket.create_server(("127.0.0.1", PORT)):
        done = run(*FLEET, *ours, "--profile", "mine.toml", **{PYTHON_VARIABLE: str(here / "python")})
    profile_name = theirs.partition("--profile ")[2]
    status = f"wait until natix-fleet vllm status --profile {profile_name} ends with 0, or that command has ended"
    refuses(done, BusyError, f"tier 'vlm': {theirs} (pid ", url, status)


def test_nobody_waits_for_the_server_of_a_run(here: Path) -> None:
    """It ends with the run."""
    profile = written("mine.toml", free_port())
    with (
        somebody(STARTS, profile.server_url(profile.tiers[0]), "natix-fleet run --profile mine.toml"),
        pytest.raises(BusyError, match="which does not answer: wait until that command has ended"),
    ):
        find_servers(profile, here)


def test_a_port_is_free_again_when_whoever_started_there_is_gone(here: Path) -> None:
    """The file stays; the lock does not."""
    url = f"http://127.0.0.1:{free_port()}"
    with starting({"vlm": url}, "natix-fleet up --profile mine.toml"), pytest.raises(BusyError):
        starting({"eyes": url}, "natix-fleet vllm start --profile other.toml").__enter__()
    with starting({"vlm": url}, "natix-fleet up --profile mine.toml"):
        assert (here / "var/vllm").is_dir()


def test_vllm_start_comes_back_beside_a_fleet_that_uses_its_servers(here: Path) -> None:
    """It was ended, and is started again: the fleet starts no server of these, and waits for them."""
    written("mine.toml", free_port())
    with RunLock(Path("var/up/lock"), "natix-fleet up --profile mine.toml", "fleet"):
        done = run(*FLEET, "vllm", "start", "--profile", "mine.toml", **{PYTHON_VARIABLE: str(here / "python")})
    assert "tier vlm: starts its server" in done.stderr


def test_what_vllm_start_finds_is_not_looked_after_by_itself(here: Path) -> None:
    """It holds the lock while it looks, and starts no server that stands."""
    with small_vlm(VLM) as url, start_lock("mine.toml"):
        assert find_servers(written("mine.toml", urlsplit(url).port or 0), here) == Servers(standing={"vlm": url})


def test_servers_of_another_profile_are_no_obstacle(here: Path) -> None:
    """Nor does whoever looks after those wake what stands here."""
    written("other.toml", free_port())
    with somebody_holds("other.toml"), small_vlm(VLM) as url:
        assert find_servers(written("mine.toml", urlsplit(url).port or 0), here) == Servers(standing={"vlm": url})


def test_a_server_that_vllm_start_runs_is_woken_by_it(here: Path) -> None:
    """The same tier at the same place; a tier of another name is not what it looks for in the ledger."""
    with small_vlm(VLM) as url, somebody_holds("mine.toml"):
        profile = written("mine.toml", urlsplit(url).port or 0)
        assert find_servers(profile, here) == Servers(standing={"vlm": url}, kept=frozenset({"vlm"}))
        (tier,) = profile.tiers
        renamed = msgspec.structs.replace(profile, tiers=(msgspec.structs.replace(tier, name="eyes"),))
        assert find_servers(renamed, here) == Servers(standing={"eyes": url})


def test_a_profile_that_cannot_be_read_any_more(here: Path) -> None:
    """Whether it wakes what stands here is then not known; what nobody runs yet is no matter of it."""
    with somebody_holds("gone.toml"), small_vlm(VLM) as url:
        with pytest.raises(ConfigError, match="natix-fleet vllm stop"):
            find_servers(written("mine.toml", urlsplit(url).port or 0), here)
        assert find_servers(written("mine.toml", free_port()), here).names == {"vlm": "vlm-server"}


def test_stop_knows_a_profile_by_its_path_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another one's servers are left alone."""
    written("mine.toml", 9001)
    written("other.toml", 9002)
    with somebody_holds("mine.toml"):
        with pytest.raises(BusyError, match=r"those of profile mine\.toml"):
            stop("other.toml")
        stop(str(here / "mine.toml"))
    assert "have ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ledger", "blocks", "said"),
    [
        ("redis://:x@127.0.0.1:6399/0", "redis://:x@127.0.0.1:6399/0", "the ledger's server"),
        ("redis://:x@localhost:6399/3", "redis://:x@127.0.0.1:6399/0", "the ledger's server"),
        ("redis://h/x", "", "REDIS_URL: the database must be a number"),
    ],
)
def test_a_wrong_ledger_is_said_before_anything_starts(ledger: str, blocks: str, said: str, here: Path) -> None:
    """As up says it: blocks must not fill the ledger's memory, and without a ledger nobody would be woken."""
    written("mine.toml", free_port(), lmcache="true")
    env = {"REDIS_URL": ledger, "NATIX_FLEET_KV_URL": blocks, PYTHON_VARIABLE: str(here / "python")}
    refuses(run(*FLEET, "vllm", "start", "--profile", "mine.toml", **env), ConfigError, said)


def test_a_file_for_the_ledgers_url_must_be_there(here: Path) -> None:
    """Another one than the one that a server of this folder writes, which may come later."""
    written("mine.toml", free_port())
    env = {"REDIS_URL_FILE": "absent", PYTHON_VARIABLE: str(here / "python")}
    refuses(run(*FLEET, "vllm", "start", "--profile", "mine.toml", **env), ConfigError, "REDIS_URL_FILE", "absent")


def test_status_of_somebody_elses_server(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wants a key, and its URL may end in a slash; a server of the fleet's own is never told the key."""
    monkeypatch.setenv(KEY_VARIABLE, "open sesame")
    with small_vlm(VLM, "open sesame") as url:
        text = f'name = "x"\n[[tiers]]\nname = "vlm"\nmodel = "{VLM}"\n[tiers.server]\nurl = "{url}/"\n'
        Path("x.toml").write_text(text)
        profile = load_profile("x.toml")
        (tier,) = profile.tiers
        assert profile.server_url(tier) == url
        assert server_status(tier, profile.server_url(tier), VLM, (here,)).healthy
        assert run(*FLEET, "vllm", "status", "--profile", "x.toml", **{KEY_VARIABLE: "open sesame"}).returncode == 0
        own = written("mine.toml", urlsplit(url).port or 0)
        assert not server_status(own.tiers[0], url, VLM, (here,)).healthy


@pytest.mark.parametrize("command", ["commands", "start", "status"])
def test_a_profile_without_servers(command: str, here: Path) -> None:
    """One whose tiers all run in workers; one whose servers are somebody else's has nothing to start."""
    env = {PYTHON_VARIABLE: str(here / "python")}
    refuses(
        run(*FLEET, "vllm", command, "--profile", "demo", **env), ConfigError, "'demo' has no tier that vLLM serves"
    )
    if command != "status":
        tier = f'[[tiers]]\nname = "vlm"\nmodel = "{VLM}"\n[tiers.server]\nurl = "http://gpu:8000"\n'
        Path("theirs.toml").write_text(f'name = "theirs"\n{tier}')
        refuses(run(*FLEET, "vllm", command, "--profile", "theirs.toml", **env), ConfigError, "are somebody else's")


def test_an_empty_name_is_no_profile(here: Path) -> None:
    """And not the whole catalogue."""
    refuses(run(*FLEET, "vllm", "commands", "--profile", "", **{PYTHON_VARIABLE: str(here / "python")}), ConfigError)
