"""What every process writes about itself: one line an event, JSON for machines or plain for people, no secrets."""

import logging
import re
import sys
from pathlib import Path

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from configs.errors import DiskError, UsageError

LEVELS = ("debug", "info", "warning", "error", "critical")

# The password of any URL, also one that holds an @ itself; a quote, blank, comma or semicolon ends a URL.
_URL_PASSWORD = re.compile(r"(://[^\s/@:\"']*):[^\s\"';,]*@")
_NAMED_PASSWORD = re.compile(r"((?:password|passwd|requirepass)=)[^\s&\"',;)]+", re.IGNORECASE)
#: Without local variables, which structlog shows by default: redis-py holds the login in one of its own.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
#: Libraries whose news at "info" is of no use to who runs a fleet.
_TALKATIVE = ("kombu", "redis", "tornado.access", "celery.redirected", "asyncio", "httpx2")


def without_secrets(text: str) -> str:
    """``text`` with the password of every URL, and every ``password=...``, replaced by three asterisks."""
    return _NAMED_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1:***@", text))


class _Renderer:
    """Renders the finished line, then hides secrets in it: so none slips in by a field, an argument or a traceback."""

    def __init__(self, render: Processor) -> None:
        self._render = render

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        return without_secrets(str(self._render(logger, method, event)))


def configure_logging(process: str, level: str = "info", *, json: bool = True, path: Path | None = None) -> None:
    """Sends structlog and the standard library's logging (Celery, kombu, redis, warnings) to one place, one form.

    Call it once, early; a second call replaces the first.

    Args:
        process: name of this process, in every line.
        level: the least severe level to write: debug, info, warning, error or critical.
        json: JSON lines, or lines for people.
        path: a file to append to; None: standard error.

    Raises:
        UsageError: there is no such level.
        DiskError: the file cannot be written.
    """
    if level not in LEVELS:
        raise UsageError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_process(process),
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        last += [_tracebacks, _Renderer(structlog.processors.JSONRenderer(default=str))]
    else:
        last += [
            _Renderer(
                structlog.dev.ConsoleRenderer(
                    colors=path is None and sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
                )
            )
        ]
    handler = _handler(path)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()], processors=last)
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _name_process(process: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add


def _handler(path: Path | None) -> logging.Handler:
    if path is None:
        return logging.StreamHandler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write the log {path}: {error.strerror}") from error
