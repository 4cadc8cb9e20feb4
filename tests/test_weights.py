"""Where weights are looked for, how they are fetched, and what is said when they cannot be had."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import constants

from configs.errors import ConfigError, DiskError, ServerError
from configs.model import ModelSpec
from tests.small_hub import COMMIT, Hub, small_hub
from workers.weights import WEIGHTS_VARIABLE, fetch, find

SPEC = ModelSpec(key="small", state="shape", reason="a test", id="somebody/small", revision="main")
FILE = msgspec.structs.replace(SPEC, key="one-file", id="somebody/files", file="weights.pt")
GATED = msgspec.structs.replace(SPEC, key="gated", id="somebody/gated", gated=True)
ELSEWHERE = msgspec.structs.replace(SPEC, id="https://example.org/releases", revision="", file="weights.pt")
NOWHERE = msgspec.structs.replace(SPEC, id="", revision="")
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what the user fetched, nor his token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in (WEIGHTS_VARIABLE, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server that answers as the hub does."""
    monkeypatch.setattr(Hub, "repositories", {"somebody/small": FILES, "somebody/gated": FILES})
    Hub.repositories["somebody/files"] = {"weights.pt": b"weights", "huge.bin": b"of no use"}
    monkeypatch.setattr(Hub, "gated", {"somebody/gated"})
    monkeypatch.setattr(Hub, "broken", set())
    with small_hub() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        # The library made this of HF_ENDPOINT when it was imported.
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + files)
        yield Hub


@pytest.mark.usefixtures("hub")
def test_fetched_weights_are_found() -> None:
    """What was fetched is found without a network, whole, in a folder named after its commit."""
    with pytest.raises(ConfigError, match=r"not on this machine: natix-fleet models fetch small \(from somebody/small"):
        find(SPEC)
    folder = fetch(SPEC)
    assert folder.name == COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert find(SPEC) == folder


@pytest.mark.usefixtures("hub")
def test_one_file_is_fetched_alone() -> None:
    """A row that names a file gets that file and no other, and it is found although the others are not here."""
    folder = fetch(FILE)
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]
    assert find(FILE) == folder / "weights.pt"


@pytest.mark.usefixtures("hub")
def test_a_file_that_the_repository_has_not() -> None:
    """A row with a file that is not there is wrong, and a fetch says so instead of fetching nothing."""
    with pytest.raises(ConfigError, match=r"somebody/small has no file 'weights.pt'"):
        fetch(msgspec.structs.replace(FILE, id="somebody/small"))


@pytest.mark.usefixtures("hub")
def test_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accepted licence one line says what to do, nothing counts as here; with it the weights come."""
    with pytest.raises(ConfigError, match="somebody/gated is gated: accept its licence on the hub, then set HF_TOKEN"):
        fetch(GATED)
    with pytest.raises(ConfigError, match="after accepting its licence on the hub and setting HF_TOKEN"):
        find(GATED)
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    assert fetch(GATED) == find(GATED)


@pytest.mark.usefixtures("hub")
def test_a_precision_has_a_repository_of_its_own() -> None:
    """A row held in fp8 is fetched from where its fp8 weights are published."""
    quantised = msgspec.structs.replace(SPEC, id="somebody/huge", quantised={"fp8": "somebody/small"}, precision="fp8")
    assert "somebody--small" in str(fetch(quantised))
    with pytest.raises(ConfigError, match="the hub has no somebody/huge, or HF_TOKEN may not see it"):
        fetch(msgspec.structs.replace(quantised, precision="bf16"))


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_there() -> None:
    """A pinned commit that the hub does not know is the row's fault."""
    with pytest.raises(ConfigError, match="somebody/small has no revision 'v9'"):
        fetch(msgspec.structs.replace(SPEC, revision="v9"))


def test_the_hub_fails_half_way(hub: type[Hub]) -> None:
    """A hub that fails while files come is away, and what came does not count as here."""
    hub.broken.add("somebody/small")
    with pytest.raises(ServerError, match=r"somebody/small cannot be fetched from http://\S+: Server error '500"):
        fetch(SPEC)
    with pytest.raises(ConfigError, match="not on this machine"):
        find(SPEC)
    hub.broken.clear()
    assert fetch(SPEC) == find(SPEC)


def test_the_hub_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: the line names the hub without its login, the cause and both ways out; a gate too."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    with pytest.raises(ServerError) as caught:
        fetch(SPEC)
    line = str(caught.value)
    assert "somebody/small cannot be fetched from http://127.0.0.1:9: " in line
    assert "Connection refused; check the network and HF_ENDPOINT, or put them into a folder small under" in line
    assert "Got:" not in line
    assert "licence" not in line
    with pytest.raises(ServerError, match="its licence must be accepted on the hub, then HF_TOKEN set"):
        fetch(GATED)


def test_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is not the network's fault."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("workers.weights.snapshot_download", full)
    with pytest.raises(DiskError, match=r"cannot be written to .*: No space left on device; make room"):
        fetch(SPEC)


def test_the_hub_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is the user's own word, and named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match="HF_HUB_OFFLINE is set, so the hub may not be asked; unset it, or put"):
        fetch(SPEC)


@pytest.mark.parametrize("spec", [ELSEWHERE, NOWHERE], ids=["elsewhere", "nowhere"])
def test_not_on_the_hub(spec: ModelSpec) -> None:
    """Weights that are published elsewhere are put into a folder by hand; the line says where they come from."""
    for ask in (find, fetch):
        with pytest.raises(ConfigError, match=f"put them into a folder small under .*{spec.id or 'published nowhere'}"):
            ask(spec)


def test_put_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder under NATIX_FLEET_WEIGHTS comes before the hub's cache; a file that is not in it is named."""
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "small").mkdir()
    assert find(SPEC) == tmp_path / "small"
    missing = tmp_path / "small/weights.pt"
    with pytest.raises(ConfigError, match=f"there is no {missing}"):
        find(ELSEWHERE)
    missing.write_bytes(b"weights")
    assert find(ELSEWHERE) == missing


def test_own_weights_lie_beside_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own model is found where model.toml is, whatever lies elsewhere."""
    monkeypatch.setattr("configs.model.MODELS", tmp_path / "models")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    for folder in (tmp_path / "small", tmp_path / "models/small"):
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(b"weights")
    (tmp_path / "models/small/model.toml").touch()
    assert find(ELSEWHERE) == tmp_path / "models/small/weights.pt"
