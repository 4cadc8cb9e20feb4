"""Runs an engine in another interpreter, because its library cannot live beside the others.

YOLO-Master's package is called ultralytics too. The environment's interpreter runs workers.engines.apart_child;
requests and replies are frames over its standard input and output.

Photos are prepared there and not here, in the call that scores them: here there is no library to prepare with, and an
input kept there for each photo prepared would outlive those that are never scored.
"""

import os
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from threading import Thread
from typing import IO, Any

import msgspec
from PIL import Image

from configs.errors import ConfigError, FleetError
from configs.model import ModelSpec
from workers.detections import Detections, Floats
from workers.engines import DeviceMemoryError, EngineAwayError, Runtime, Shot
from workers.engines.apart_frames import (
    Ask,
    Boxes,
    Depths,
    Failed,
    Load,
    Photo,
    Reply,
    Request,
    Scores,
    Verb,
    WarmUp,
    receive,
    send,
)

ROOT = Path(__file__).parents[2]

#: Environments by name: what must be installed there beside OURS.
ENVIRONMENTS = {
    "yolo-master": "github.com/Tencent/YOLO-Master (pip install -e CHECKOUT: no index has it), torchvision",
    "kvpress": "KVPress (make .venv-kvpress/stamp, or pip install -r ops/environments/kvpress.txt)",
}
#: What this project's own files need there.
OURS = "msgspec, pillow, numpy and huggingface-hub"

#: What is kept of a child's last words.
LAST_LINES = 5
#: A child whose pipe was closed ends by itself within this, or is killed.
END_S = 5.0

# The project goes last on the path: where it is installed beside other packages, theirs must not come before the
# environment's own.
_START = "import sys; sys.path.append(sys.argv[1]); from workers.engines.apart_child import main; main()"


class ApartError(FleetError):
    """The engine failed in its interpreter, or that interpreter ended."""


class _EndedError(Exception):
    """The child is no more; the text says why."""


class _Child:
    """The other interpreter; one thread at a time talks to it. It ends with this object, and with this process."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter that the user named
            [python, "-c", _START, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        # Daemon: it reads until the child ends, and the child ends after this process.
        self._reader = Thread(target=_hear, args=(self._process.stderr, self._last), name="apart", daemon=True)
        self._reader.start()
        self.end = weakref.finalize(self, _end, self._process)

    def ask(self, request: Request) -> Reply:
        """The reply to a request.

        Raises:
            _EndedError: the child is no more.
        """
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None:
            raise RuntimeError("the child was started without pipes")
        try:
            send(requests, request)
            # A union is no type to mypy.
            return receive(replies, Reply)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError):
            self.end()
            self._reader.join(END_S)
            raise _EndedError(f"{_status(self._process.returncode)}: {' / '.join(self._last) or 'no words'}") from None


def _hear(pipe: IO[bytes], last: deque[str]) -> None:
    """Passes on what the child says, and keeps the last of it."""
    with pipe:
        for line in pipe:
            text = line.decode(errors="replace").rstrip()
            if text:
                last.append(text)
                print(text, file=sys.stderr, flush=True)  # noqa: T201 - the child's log


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                # What was not yet written goes nowhere: that is known already.
                continue
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _status(code: int) -> str:
    return f"ended by {Signals(-code).name}" if code < 0 else f"ended with status {code}"


class Engine:
    """An engine in the interpreter of its row's environment.

    Raises:
        ConfigError: no variable names that interpreter.
    """

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        name = spec.environment
        variable = f"NATIX_FLEET_PYTHON_{name.upper().replace('-', '_').replace('.', '_')}"
        self._python = os.environ.get(variable, "")
        if not self._python:
            needs = ENVIRONMENTS.get(name, f"what engine {spec.engine!r} needs")
            raise ConfigError(
                f"model {spec.key!r} runs in an environment of its own: set {variable} to the bin/python of a virtual "
                f"environment (Python 3.11 or newer) with {needs}, and {OURS}"
            )
        self._spec = spec
        # There it is an engine like any other.
        self._load = Load(msgspec.structs.replace(spec, environment=""), runtime)
        self._child: _Child | None = None

    def load(self) -> None:
        """Starts the interpreter and loads the weights there.

        Raises:
            ConfigError: the interpreter cannot run engines, or what the engine there says.
        """
        self._child = None
        try:
            child = _Child(self._python)
            self._checked(child.ask(self._load))
        except OSError as error:
            raise ConfigError(f"model {self._spec.key!r}: {self._python} cannot be run: {error.strerror}") from None
        except _EndedError as error:
            raise ConfigError(f"model {self._spec.key!r}: {self._python} cannot run its engine: {error}") from None
        except DeviceMemoryError as error:
            raise ConfigError(f"model {self._spec.key!r}: no memory to load it: {error}") from None
        self._child = child

    def warm_up(self) -> None:
        """Warms the engine there."""
        self._talk(WarmUp())

    def prepare(self, photo: Image.Image, shot: Shot) -> Photo:
        """The photo as it is: the engine prepares it in its interpreter."""
        return Photo(photo.size, photo.tobytes(), shot)

    def score(self, inputs: Sequence[Photo]) -> list[float | None]:
        """One raw logit a photo, in their order; None: the model abstains.

        Raises:
            DeviceMemoryError, EngineAwayError: as the engine there.
            ApartError: it raised something else, or its interpreter ended.
        """
        return self._found("score", inputs, Scores)

    def detect(self, inputs: Sequence[Photo]) -> list[Detections | None]:
        """The boxes of each photo; None: the model abstains. Raises as score()."""
        return self._found("detect", inputs, Boxes)

    def measure(self, inputs: Sequence[Photo]) -> list[Floats | None]:
        """The depth of each photo in metres, (h, w); None: the model abstains. Raises as score()."""
        return self._found("measure", inputs, Depths)

    def _found(self, what: Verb, inputs: Sequence[Photo], kind: type[Scores | Boxes | Depths]) -> list[Any]:
        if not inputs:
            return []
        reply = self._talk(Ask(what, list(inputs)))
        if not isinstance(reply, kind):
            raise ApartError(f"model {self._spec.key!r}: {what} was answered with {type(reply).__name__}")
        return list(reply.found)

    def _talk(self, request: Request) -> Reply:
        if self._child is None:
            self._start_again()
        child = self._child
        if child is None:
            raise RuntimeError("there is no child")
        try:
            return self._checked(child.ask(request))
        except _EndedError as error:
            # Started again here and not at the next photo's turn: should it take longer than a stall may, then this
            # batch is to blame, and not one that did nothing.
            self._start_again()
            raise ApartError(f"model {self._spec.key!r}: its interpreter {error}") from None

    def _start_again(self) -> None:
        try:
            self.load()
            if self._child is not None:
                self._checked(self._child.ask(WarmUp()))
        except (FleetError, _EndedError) as error:
            self._child = None
            raise EngineAwayError(f"model {self._spec.key!r} cannot be started again: {error}") from error

    def _checked(self, reply: Reply) -> Reply:
        if not isinstance(reply, Failed):
            return reply
        if reply.kind == "config":
            raise ConfigError(reply.reason)
        if reply.kind == "memory":
            raise DeviceMemoryError(reply.reason)
        if reply.kind == "away":
            raise EngineAwayError(reply.reason)
        raise ApartError(f"model {self._spec.key!r}: {reply.reason}")
