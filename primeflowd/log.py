"""Logging: what a line looks like and what must not be on it.

`configure` is called once, by the command line, before anything is logged; of what it sets, the
level alone may change later. Every event is one line
on standard error, logfmt or JSON: `timestamp` (RFC 3339, UTC), `level`, `event`, then the fields
given at the call and those bound to the context, such as `request_id`. A traceback is a field,
`exception`, with its newlines escaped. Log records and warnings of libraries take the same way.

Guarantees: no event spans two lines; no field named like a secret or a body is shown; nothing that
looks like an API key or a signing secret gets through, whatever field or traceback it is in. That
is a belt: callers still do not pass them.

Blocks on: standard error. A reader that has gone away does not stop the daemon; its lines are lost.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from primeflowd.config import Log

_HIDDEN_FIELDS: Final = frozenset(
    {
        "authorization",
        "body",
        "key",
        "master_key",
        "payload",
        "payload_bytes",
        "plain_secret",
        "secret",
        "x-reevit-key",
    }
)
_HIDDEN: Final = "[hidden]"
# Long enough to spare the prefixes that we show to tell keys apart. No word boundary before it: an
# escaped newline ends in a letter.
_SECRET_TEXT: Final = re.compile(r"(pfk_|whsec_)[\w+/=-]{16,}")
# What all loggers of the last `configure` are made of; a new level gives it other methods.
_logger_class: type = type("Logger", (), {})
_BARE_VALUE: Final = re.compile(r"[^\s\"=\\]+")


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (standard error) as `settings` say.

    Loggers that were used before this call keep to it too; those used after it are bound to these
    settings for good, but for the level (`set_level`), which is what makes a disabled `debug` call
    cost next to nothing.
    """
    global _logger_class
    stream = stream or sys.stderr
    render = _json if settings.format == "json" else _logfmt
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    _logger_class = type("Logger", (structlog.make_filtering_bound_logger(settings.level),), {})
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=_logger_class,
        logger_factory=lambda *_: _LineLogger(stream),
        cache_logger_on_first_use=True,
    )
    _route_standard_library(settings, shared, render, stream)


def set_level(settings: Log) -> None:
    """Log from another level up: all loggers, those that were bound before, too."""
    for name, method in vars(structlog.make_filtering_bound_logger(settings.level)).items():
        if not name.startswith("__"):
            setattr(_logger_class, name, method)
    logging.getLogger().setLevel(_library_level(settings))


def hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The event with dangerous fields blanked, in nested mappings too, and bytes as a length."""
    return _without_secrets(event)


def _without_secrets(fields: Mapping[str, Any]) -> MutableMapping[str, Any]:
    return {
        name: _HIDDEN if str(name).lower() in _HIDDEN_FIELDS else _shown(value)
        for name, value in fields.items()
    }


def _shown(value: object) -> object:
    if isinstance(value, Mapping):
        return _without_secrets(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return value


def _in_order(event: Mapping[str, Any]) -> dict[str, Any]:
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return first | dict(event)


def _json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _censored(json.dumps(_in_order(event), default=repr))


def _logfmt(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _censored(
        " ".join(f"{name}={_logfmt_value(value)}" for name, value in _in_order(event).items())
    )


def _logfmt_value(value: object) -> str:
    """Bare where it can be; else a JSON string, so that one parser reads every quoted value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, default=repr)
    text = str(value)
    if text.isprintable() and _BARE_VALUE.fullmatch(text):
        return text
    # Line separators and terminal escapes are not printable: then everything odd is escaped.
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _censored(line: str) -> str:
    return _SECRET_TEXT.sub(rf"\1{_HIDDEN}", line)


class _LineLogger(structlog.WriteLogger):
    """Writes lines; a log that nobody can read any more must not end deliveries."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)

    def msg(self, message: str) -> None:
        # The pipe's reader is gone, the disk is full, or the stream is closed.
        with contextlib.suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _library_level(settings: Log) -> int:
    return max(logging.WARNING, logging.getLevelNamesMapping()[settings.level.upper()])


def _route_standard_library(
    settings: Log, shared: list[Processor], render: Processor, stream: TextIO
) -> None:
    """Log records of libraries, from WARNING up, as events of ours with `logger` added."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_library_level(settings))
    logging.captureWarnings(capture=True)
    # A broken stream is not worth a traceback on that same stream.
    logging.raiseExceptions = False
