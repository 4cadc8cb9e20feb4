"""The commands as a user meets them, given what is wrong: one line with cause and remedy, and a named exit status."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis

from configs.errors import (
    BusyError,
    ConfigError,
    DiskError,
    FleetError,
    PhotoError,
    ServerError,
    SourceError,
    UsageError,
)
from ops.ask import _print
from ops.lock import RunLock
from ops.server import EmbeddedServer
from routing.address import address_from_environment
from routing.ledger import PREFIX
from routing.messages import Item, Verdict, Vote
from routing.store import FilePhotos
from workers.verdicts import VerdictDatabase

ROOT = Path(__file__).parents[1]
FLEET = (sys.executable, "-m", "ops.cli")
PRODUCER = (sys.executable, str(ROOT / "producers/natix.py"))

#: What a command waits for a server that is away: the last try, its reply timeout, and the start of Python.
AWAY_WITHIN_S = 10.0 + 5.0

PROFILE = """\
name = "mine"
[[tiers]]
name = "only"
model = "scout-s"
"""


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what would lend a command a server, a database or a login."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "NATIX_", "FLOWER_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command's end."""
    return subprocess.run(
        argv, env=environment(**env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=40, check=False
    )


def refuses(done: subprocess.CompletedProcess[str], kind: type[FleetError], *words: str) -> None:
    """Checks a refusal: the named status, one error line at the end with all ``words`` in it, no traceback."""
    assert done.returncode == kind.exit_status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    for word in words:
        assert word in lines[-1]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((*FLEET, "fly"), ("No such command 'fly'",)),
        ((*FLEET, "run", "--fast"), ("No such option '--fast'",)),
        ((*FLEET, "run", "--limit", "0"), ("--limit", "x>=1")),
        ((*FLEET, "--log-level", "loud", "status"), ("--log-level", "'debug'")),
        ((*FLEET, "worker"), ("Missing argument 'TIER'",)),
        ((*FLEET, "ask", "photo.jpg", "--deadline-s", "0"), ("--deadline-s",)),
        ((*FLEET, "feed", "rendered:1", "--lane", "fast"), ("--lane", "'bulk'")),
        ((*PRODUCER, "rendered:1", "--limit", "0"), ("--limit", "x>=1")),
        ((*PRODUCER, "--fast"), ("No such option '--fast'",)),
    ],
    ids=lambda value: " ".join(value[1:])[-40:],
)
def test_a_mistyped_command_is_told_how_to_ask(here: Path, argv: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Unknown commands, options and values get click's usage, where to find help, one error, and status 64."""
    done = run(*argv)
    assert done.returncode == UsageError.exit_status
    assert "Traceback" not in done.stderr
    assert len(re.findall("^Error: ", done.stderr, re.MULTILINE)) == 1
    assert "--help" in done.stderr
    for word in words:
        assert word in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "kind", "words"),
    [
        ((*FLEET, "worker", "huge"), ConfigError, ("no tier 'huge'", "it has scout-s, scout-m")),
        ((*FLEET, "worker", "scout-s", "--device", "cuda:99"), ConfigError, ("'cuda:99'", "--device cpu")),
        ((*FLEET, "worker", "scout-s", "--device", "gpu"), UsageError, ("'gpu'", "cuda:INDEX")),
        (
            (*FLEET, "worker", "scout-s", "--profile", "none"),
            ConfigError,
            ("profile 'none'", "the project has", "demo"),
        ),
        ((*FLEET, "status"), ConfigError, ("set REDIS_URL", "natix-fleet server")),
        ((*FLEET, "run", "--photos", "nowhere"), SourceError, ("'nowhere'", "rendered:N")),
        ((*FLEET, "run", "--photos", "rendered:x"), UsageError, ("rendered:x", "rendered:500")),
        ((*FLEET, "run", "--photos", ""), UsageError, ("--photos", "rendered:N")),
        ((*PRODUCER, ""), UsageError, ("SOURCE is empty", "rendered:N")),
        ((*PRODUCER, "nowhere"), SourceError, ("'nowhere'", "rendered:N")),
        ((*PRODUCER, "rendered:1"), ConfigError, ("set REDIS_URL",)),
        ((*FLEET, "ask", "photo.jpg"), SourceError, ("photo.jpg", "No such file")),
        ((*FLEET, "quarantine", "show", "photo.jpg"), UsageError, ("SOURCE:POSITION", "quarantine list")),
        ((*FLEET, "quarantine", "show", "a:²"), UsageError, ("SOURCE:POSITION",)),
        ((*FLEET, "quarantine", "replay", "a:1", "a:" + "9" * 30), UsageError, ("SOURCE:POSITION",)),
        ((*FLEET, "quarantine", "show", "a:1"), ConfigError, ("no verdict database at /", "the collector makes it")),
        ((*FLEET, "verdicts", "export", "verdicts.txt"), UsageError, ("verdicts.txt", ".parquet or .csv")),
        ((*FLEET, "verdicts", "export", "verdicts.csv"), ConfigError, ("no verdict database", "the collector makes")),
    ],
    ids=lambda value: " ".join(value[1:])[-40:] if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_refused(
    here: Path, argv: tuple[str, ...], kind: type[FleetError], words: tuple[str, ...]
) -> None:
    """What a command cannot do is said in one line, with its own status, and nothing is left behind."""
    refuses(run(*argv), kind, *words)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[tiers]]", "spead = 3\n[[tiers]]", ("mine.toml", "`spead`")),
        ('model = "scout-s"', 'model = "scout-s"\nthreshhold = 0.9', ("`threshhold`", "$.tiers[")),
        ('model = "scout-s"', 'model = "scout-s"\nmax_batch = "64"', ("$.tiers[", ".max_batch")),
        ('model = "scout-s"', 'model = "scout-xxl"', ("scout-xxl", "natix-fleet models")),
        ('model = "scout-s"', 'model = "scout-s"\ndevice = "gpu0"', ("'gpu0'", "cuda:INDEX")),
        ("[[tiers]]", "[[tiers", ("mine.toml",)),
    ],
    ids=["unknown key", "unknown key of a tier", "wrong type", "unknown model", "no device", "not TOML"],
)
def test_a_wrong_profile_is_refused(here: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    """A profile with a mistake is refused with the place of the mistake before anything starts."""
    (here / "mine.toml").write_text(PROFILE.replace(old, new))
    refuses(run(*FLEET, "worker", "only", "--profile", "mine.toml"), ConfigError, *words)
    assert [path.name for path in here.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_model_without_its_weights_takes_no_work(here: Path, state: str) -> None:
    """A worker whose model file is not there, or is no model, ends with the file's name before it asks for a server."""
    # A copy of the catalogue, found before the real one.
    shutil.copytree(ROOT / "configs", here / "configs")
    weights = here / "configs/models/scout-s/model.onnx"
    if state == "missing":
        weights.unlink(missing_ok=True)
    else:
        weights.write_bytes(b"no model")
    refuses(run(*FLEET, "worker", "scout-s", PYTHONPATH=f"{here}{os.pathsep}{ROOT}"), ConfigError, str(weights))


def test_a_device_that_is_not_there_ends_the_run(here: Path) -> None:
    """A run whose worker cannot have its device ends at once with the worker's own status and last line."""
    (here / "mine.toml").write_text(PROFILE + 'device = "cuda:99"\n')
    done = run(*FLEET, "run", "--profile", "mine.toml", "--photos", "rendered:1", "--flower-port", "0")
    assert done.returncode == ConfigError.exit_status, done.stderr
    assert "Traceback" not in done.stderr
    *_, first, last = done.stderr.splitlines()
    assert first.startswith("error: only ended before it was ready")
    assert "no such GPU here" in last


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1", ("redis://",)),
        ("redis://:hun/ter2@127.0.0.1", ("%2F",)),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_wrong_server_url_is_refused(url: str, words: tuple[str, ...]) -> None:
    """A REDIS_URL that cannot be read is refused with the right form, and its password is not repeated."""
    done = run(*FLEET, "status", REDIS_URL=url)
    refuses(done, ConfigError, "REDIS_URL: ", *words)
    assert "ter2" not in done.stderr


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        yield silent.getsockname()[1]


def test_a_server_that_is_away_is_not_waited_for(here: Path, silent_port: int) -> None:
    """Nobody at REDIS_URL, no sentinel, or a peer that says nothing: every command gives up within seconds."""
    # Bound and not listening: nobody else can begin to listen there meanwhile.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        nobody = f"redis://:hunter2@127.0.0.1:{port}/0"
        sentinel = f"sentinel://:hunter2@127.0.0.1:{port}/0?master_name=fleet"
        cases = [
            ((*FLEET, "status"), nobody, "start it or correct the server address"),
            ((*FLEET, "up", "--flower-port", "0"), nobody, "start it or correct the server address"),
            ((*PRODUCER, "rendered:1"), nobody, "start it or correct the server address"),
            ((*FLEET, "status"), sentinel, "check the sentinels and master_name"),
            ((*FLEET, "quarantine", "drop", "a:1"), f"redis://:hunter2@127.0.0.1:{silent_port}/0", "does not answer"),
        ]
        begun_s = time.monotonic()
        # At the same time: each waits by itself.
        started = [
            subprocess.Popen(argv, env=environment(REDIS_URL=url), stdout=-1, stderr=-1, text=True)
            for argv, url, _ in cases
        ]
        for process, (_, _, words) in zip(started, cases, strict=True):
            out, err = process.communicate(timeout=60)
            refuses(subprocess.CompletedProcess(process.args, process.returncode, out, err), ServerError, words)
            assert "hunter2" not in out + err
        # Measured for all together, which five starts of Python on few cores make longer.
        assert time.monotonic() - begun_s < 1.5 * AWAY_WITHIN_S
    assert [path.name for path in here.iterdir()] in ([], ["var"])


@pytest.mark.usefixtures("here")
def test_a_stranger_at_the_servers_port_is_named(server: EmbeddedServer) -> None:
    """A refused login and a database that is not there are told apart, with the status of an unusable server."""
    wrong = re.sub("://:[0-9a-f]+@", "://:hunter2@", server.url)
    refuses(run(*FLEET, "status", REDIS_URL=wrong), ServerError, "refuses the login", "check user and password")
    refuses(run(*FLEET, "status", REDIS_URL=f"{server.url}99"), ServerError, "out of range")


@pytest.mark.parametrize("command", ["run", "up", "flower"])
@pytest.mark.usefixtures("here")
def test_a_taken_flower_port_is_refused(server: EmbeddedServer, command: str) -> None:
    """Flower's port in use ends the command with the flag that names another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(*FLEET, command, "--flower-port", port, REDIS_URL=server.url)
    refuses(done, BusyError, f"port {port} is taken", "--flower-port", "FLOWER_PORT=0")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ("no photo in it",)),
        ({"manifest.csv": "file,name\na.jpg,b\n"}, ("line 1: no column label", "it has file, name")),
        ({"manifest.csv": "file,label\na.jpg,1\nb.jpg,maybe\n"}, ("line 3", "'maybe' is not 1, 0 or empty")),
    ],
    ids=["empty", "no column", "label"],
)
def test_a_folder_that_is_not_laid_out_is_refused(here: Path, files: dict[str, str], words: tuple[str, ...]) -> None:
    """An empty folder and a malformed manifest are refused, the manifest with its line, before anything starts."""
    photos = here / "photos"
    photos.mkdir()
    for name, text in files.items():
        (photos / name).write_text(text)
    refuses(run(*FLEET, "run", "--photos", "photos"), SourceError, *words)
    assert [path.name for path in here.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", ("not-an-image",)),
        (b"\xff\xd8\xff\xe0", ("truncated",)),
    ],
    ids=["text", "cut"],
)
def test_asking_about_no_photo_is_refused(here: Path, data: bytes, words: tuple[str, ...]) -> None:
    """A file that is no photo is refused with the reason that intake gives, before a server is asked for."""
    (here / "photo.jpg").write_bytes(data)
    refuses(run(*FLEET, "ask", "photo.jpg"), PhotoError, "photo.jpg: ", *words)


def test_a_question_to_a_full_fleet_is_refused(here: Path, server: EmbeddedServer, redis_client: Redis) -> None:
    """Where admission is at its bound, ask ends at once with the status for busy, and its photo does not stay."""
    store = here / "store"
    (here / "mine.toml").write_text(PROFILE + f'[admission]\nmax_items = 1\n[photos]\nstore = "file://{store}"\n')
    Image.new("RGB", (64, 64)).save(here / "photo.jpg")
    VerdictDatabase("sqlite:///var/verdicts.db").close()
    redis_client.hset(PREFIX + "use", "items", 1)
    done = run(*FLEET, "ask", "photo.jpg", "--profile", "mine.toml", REDIS_URL=server.url)
    refuses(done, BusyError, "the fleet is full", "add workers")
    assert list(store.rglob("*.jpg")) == []


@pytest.mark.usefixtures("here")
def test_a_second_run_waits_for_nobody() -> None:
    """While a run holds the lock another one, and another fleet in its place, end with who holds it."""
    with RunLock(command="natix-fleet run --photos mine"):
        done = run(*FLEET, "run", "--photos", "rendered:1")
        refuses(done, BusyError, f"another run (pid {os.getpid()})", "natix-fleet run --photos mine")
    with RunLock(Path("var/up/lock"), "natix-fleet up --profile demo", "fleet"):
        refuses(run(*FLEET, "up"), BusyError, f"another fleet (pid {os.getpid()})", "natix-fleet up --profile demo")
        with RunLock(Path("var/up/restart.lock"), "natix-fleet restart", "restart"):
            refuses(run(*FLEET, "restart"), BusyError, f"another restart (pid {os.getpid()})")


@pytest.mark.usefixtures("here")
def test_a_restart_needs_a_fleet() -> None:
    """Where none ever ran, and where one ran and ended, restart says how to start one."""
    refuses(run(*FLEET, "restart"), ServerError, "no fleet runs here", "natix-fleet up")
    with RunLock(Path("var/up/lock"), "natix-fleet up", "fleet"):
        pass
    refuses(run(*FLEET, "restart"), ServerError, "no fleet runs here", "natix-fleet up")


#: A fleet that is asked to restart, with what comes of it in its argument; without one it ends.
ASKED = """
import signal, sys
from pathlib import Path
from ops.lock import RunLock
from ops.restart import RestartRequests, TOLD
requests = RestartRequests(Path("var/up"))
with RunLock(Path("var/up/lock"), "natix-fleet up", "fleet"):
    print("up", flush=True)
    signal.pause()
    assert requests.take() and not requests.take()
    if sys.argv[1]:
        Path("var/up", TOLD).write_text(sys.argv[1])
        signal.pause()
"""


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ("a replaced: \nfleet restart stopped: b: exit status 78\n", FleetError, ("b: exit status 78", "var/up")),
        ("", ServerError, ("the fleet ended before",)),
    ],
    ids=["stopped", "ended"],
)
@pytest.mark.usefixtures("here")
def test_a_restart_that_fails_says_so(told: str, kind: type[FleetError], words: tuple[str, ...]) -> None:
    """A process that did not come up again, or a fleet that ended meanwhile, is the restart's error."""
    with subprocess.Popen([sys.executable, "-c", ASKED, told], env=environment(), stdout=-1, text=True) as fleet:
        try:
            assert fleet.stdout
            assert fleet.stdout.readline() == "up\n"
            refuses(run(*FLEET, "restart"), kind, *words)
        finally:
            fleet.kill()


@pytest.mark.parametrize("command", ["run", "up", "server"])
def test_a_folder_that_cannot_be_made_is_named(here: Path, command: str) -> None:
    """Where var cannot be a folder, every command that writes there says so with the status of a disk."""
    (here / "var").write_text("in the way")
    refuses(run(*FLEET, command), DiskError, "var")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_named(here: Path) -> None:
    """A var without write permission ends a run with its name."""
    (here / "var").mkdir(mode=0o500)
    refuses(run(*FLEET, "run", "--photos", "rendered:1"), DiskError, "var", "Permission denied")


def test_an_export_needs_a_place_and_a_show_a_row(here: Path) -> None:
    """With a database, a folder that is missing and an image that is unknown are told by name."""
    VerdictDatabase("sqlite:///var/verdicts.db").close()
    refuses(run(*FLEET, "verdicts", "export", "missing/verdicts.csv"), DiskError, "missing/verdicts.csv")
    refuses(run(*FLEET, "quarantine", "show", "nobody:3"), SourceError, "nobody:3", "no such image")
    assert [path.name for path in here.iterdir()] == ["var"]


def test_a_killed_server_does_not_keep_the_next_fleet_away(here: Path) -> None:
    """`up` finds var/server/url of a server that was killed, and starts one of its own in its place."""
    url = here / "var/server/url"
    with EmbeddedServer(here / "var/server") as killed:
        killed.write_url(url)
        left = url.read_text()
    fleet = subprocess.Popen([*FLEET, "up", "--flower-port", "0"], env=environment(), stderr=subprocess.PIPE, text=True)
    assert fleet.stderr
    with fleet, fleet.stderr as said:
        try:
            line = next(line for line in said if line.startswith(("fleet 'demo' on", "error: ")))
            assert line.startswith("fleet 'demo' on")
            assert url.read_text() != left
            # From its first child on the signal drains.
            next(line for line in said if '"what": "started"' in line)
        finally:
            fleet.send_signal(signal.SIGTERM)
            # Read to its end: a full pipe would hold up the drain.
            said.read()
    assert fleet.returncode == 0
    assert not url.exists()


@pytest.mark.usefixtures("here")
def test_an_answer_shows_p_and_its_votes(capsys: pytest.CaptureFixture[str]) -> None:
    """What `ask` prints is the row's p, tier and votes; a void becomes the error that its reason names."""
    votes = (Vote("scout-s", "scout-s@1", 0.75, 1.0, 2.0),)
    item = Item(
        source="ask-1",
        position=0,
        origin="ask",
        label=-1,
        sha256=bytes(32),
        stored_bytes=9,
        size_px=(4, 3),
        taken_ms=1,
        votes=votes,
    )
    with VerdictDatabase("sqlite:///verdicts.db") as database:
        database.write([(Verdict(item=item, p=0.75, tier="scout-s", settled_ms=5), 1)])
        row = database.row("ask-1", 0)
    assert row is not None
    _print(row, 0.125, as_json=False)
    said = capsys.readouterr().out
    assert "P(roadwork) = 0.7500, settled by scout-s in 0.1" in said
    assert "scout-s@1" in said
    _print(row, 0.125, as_json=True)
    assert '"votes":[{"tier":"scout-s","model":"scout-s@1","p":0.75,"weight":1.0}]' in capsys.readouterr().out
    with pytest.raises(PhotoError, match="truncated: no end"):
        _print(row | {"p": None, "reason": "truncated", "detail": "no end"}, 0.1, as_json=True)


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        ("ZeroDivisionError", FleetError.exit_status, "ZeroDivisionError, a mistake of natix-fleet itself"),
        ("redis.ConnectionError", ServerError.exit_status, "does not answer"),
        ("KeyboardInterrupt", 130, ""),
        ("OSError(28, 'No space left on device', 'var/x')", DiskError.exit_status, "var/x: No space left on device"),
        ("ConnectionRefusedError(111, 'refused')", ServerError.exit_status, "a connection failed: refused"),
        ("click.UsageError('no s3://key:hunter2@bucket')", UsageError.exit_status, "no s3://key:***@bucket"),
    ],
)
def test_no_failure_has_pythons_own_status(failure: str, status: int, words: str) -> None:
    """A mistake of ours, a server that goes away in the middle and Ctrl-C have a status of their own, never 1."""
    code = f"import click, redis; from routing.command import run_command\ndef f(): raise {failure}\n"
    done = run(sys.executable, "-c", code + "run_command(click.command(f))")
    assert done.returncode == status
    assert words in done.stderr
    assert "hunter2" not in done.stderr


def test_a_stores_password_is_not_repeated(here: Path, server: EmbeddedServer) -> None:
    """A store URL with a password that cannot be opened is told with three asterisks in its place."""
    (here / "mine.toml").write_text(PROFILE + '[photos]\nstore = "nosuch://user:hunter2@host/photos"\n')
    done = run(*FLEET, "quarantine", "drop", "s:3", "--profile", "mine.toml", REDIS_URL=server.url)
    refuses(done, ConfigError, "nosuch://user:***@host/photos")
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("wait", ["soon", "-1", "nan"])
@pytest.mark.usefixtures("here")
def test_a_wait_that_is_no_number_is_refused(wait: str) -> None:
    """NATIX_FLEET_WAIT_S must be a number of seconds."""
    refuses(run(*FLEET, "status", NATIX_FLEET_WAIT_S=wait), ConfigError, f"NATIX_FLEET_WAIT_S '{wait}'", "30")


def test_a_url_that_a_killed_server_left_is_waited_out(here: Path, server: EmbeddedServer) -> None:
    """With NATIX_FLEET_WAIT_S a command waits until somebody listens where the file says."""
    url = here / "url"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url.write_text(f"redis://:old@127.0.0.1:{closed.getsockname()[1]}/0")
        writer = threading.Timer(0.5, url.write_text, [server.url])
        writer.start()
        assert address_from_environment({"NATIX_FLEET_WAIT_S": "20"}, url).url == server.url
        writer.join()


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_model_without_its_training_list_is_refused(here: Path, server: EmbeddedServer, state: str) -> None:
    """A producer whose model's training list is missing or damaged ends with the list's path."""
    shutil.copytree(ROOT / "configs", here / "configs")
    training = here / "configs/models/scout-s/training.sha256"
    if state == "missing":
        training.unlink()
    else:
        training.write_text("abc\n")
    env = {"PYTHONPATH": f"{here}{os.pathsep}{ROOT}", "REDIS_URL": server.url}
    refuses(run(*FLEET, "feed", "rendered:1", **env), ConfigError, str(training))


@pytest.mark.parametrize("kept", [True, False], ids=["in quarantine", "on its way"])
def test_a_dropped_photo_leaves_the_profiles_store(
    here: Path, server: EmbeddedServer, redis_client: Redis, kept: bool
) -> None:
    """Drop deletes a quarantined photo's bytes from a folder store too; not those of one on its way."""
    store = FilePhotos(f"file://{here}/store")
    store.put("s", [(3, b"bytes"), (4, b"others")])
    if kept:
        redis_client.zadd(PREFIX + "voids", {"s:3": 2e15})
    (here / "mine.toml").write_text(f'{PROFILE}[photos]\nstore = "file://{here}/store"\n')
    done = run(*FLEET, "quarantine", "drop", "s:3", "--profile", "mine.toml", REDIS_URL=server.url)
    assert done.returncode == (0 if kept else SourceError.exit_status), done.stderr
    assert f"{int(kept)} of 1 dropped" in done.stdout
    assert sorted(path.name for path in (here / "store/s").iterdir()) == ["000000000003.jpg"] * (not kept) + [
        "000000000004.jpg"
    ]


def test_a_run_goes_on_with_its_own_photos_only(here: Path, server: EmbeddedServer, redis_client: Redis) -> None:
    """--run with another folder of the same name, or another limit, is refused; with the same photos it goes on."""
    for place in ("a", "b"):
        (here / place / "photos").mkdir(parents=True)
        (here / place / "photos/empty.jpg").touch()
    redis_client.ping()

    def feed(place: str, *more: str) -> subprocess.CompletedProcess[str]:
        return run(*PRODUCER, f"{place}/photos", "--run", "r1", *more, REDIS_URL=server.url)

    assert feed("a").returncode == 0
    refuses(feed("b"), UsageError, f"run photos-r1 is of {here}/a/photos without --limit", "another --run")
    refuses(feed("a", "--limit", "1"), UsageError, "run photos-r1 is of", "without --limit")
    again = feed("b/../a")
    assert "0 photos admitted" in again.stdout, again.stderr


#: A producer whose source hangs as a hub does that is away.
HANGS = """
import sys, threading
from pathlib import Path
from configs.profile import load_profile
from producers.feed import Pace
from producers.natix import _run
class Hub:
    name, total, note = "hub", None, ""
    def photos(self, start):
        print("asked", flush=True)
        threading.Event().wait()
        yield
_run(Hub(), "natix", None, load_profile("demo"), Pace(max_items=1, linger_ms=1), "bulk", "r", Path("journal"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("here", "redis_client")
def test_a_producer_that_hangs_ends_by_its_second_signal(server: EmbeddedServer, number: signal.Signals) -> None:
    """The first signal drains, which a source that hangs never sees; the second ends the producer with status 130."""
    command = [sys.executable, "-c", HANGS]
    with subprocess.Popen(command, env=environment(REDIS_URL=server.url), stdout=-1, text=True) as producer:
        try:
            assert producer.stdout
            assert "asked\n" in producer.stdout
            producer.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                producer.wait(0.5)
            producer.send_signal(number)
            assert producer.wait(5) == 130
        finally:
            producer.kill()


def test_no_engine_is_imported_before_its_device_is_chosen() -> None:
    """What a worker imports before it pins its device holds no engine's library."""
    code = "import sys, ops.cli, ops.serve; print(*{'onnxruntime', 'torch'} & sys.modules.keys())"
    assert run(sys.executable, "-c", code).stdout.strip() == ""


@pytest.mark.usefixtures("here", "redis_client")
def test_a_status_in_a_file_is_as_wide_as_its_tables(server: EmbeddedServer) -> None:
    """Without a terminal a line of the status is not broken at 80 columns."""
    done = run(*FLEET, "status", REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("admitted 0")]
    assert line.endswith("processes 0")
    assert len(line) > 80


def test_a_server_takes_a_killed_ones_url_away_and_leaves_a_living_ones(here: Path, server: EmbeddedServer) -> None:
    """A stale var/server/url is gone before the new server starts; a second server leaves the first one's alone."""
    url = here / "var/server/url"
    url.parent.mkdir(parents=True)
    port = str(server.port)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url.write_text(f"redis://:old@127.0.0.1:{closed.getsockname()[1]}/0")
        refuses(run(*FLEET, "server", "--port", port), BusyError, f"port {port} is taken")
    assert not url.exists()
    url.write_text(server.url)
    refuses(run(*FLEET, "server", "--port", port), BusyError, f"port {port} is taken")
    assert url.read_text() == server.url
