"""Logs as JSON lines, one canonical line a request.

Every line has `timestamp`, `level`, `component`, `message`, `metadata`, and `trace_id`, `span_id`, `request_id` where a request is being
served. Text of users and keys never stand in a log: callers of this module pass counts, names and reasons.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TRACE, DEBUG, INFO, WARN, ERROR, FATAL = 5, 10, 20, 30, 40, 50
LEVELS = {
    "TRACE": TRACE,
    "DEBUG": DEBUG,
    "INFO": INFO,
    "WARN": WARN,
    "WARNING": WARN,
    "ERROR": ERROR,
    "FATAL": FATAL,
    "CRITICAL": FATAL,
}
_NAMES = {TRACE: "TRACE", DEBUG: "DEBUG", INFO: "INFO", WARN: "WARN", ERROR: "ERROR", FATAL: "FATAL"}

current: ContextVar[Mapping[str, str] | None] = ContextVar("current", default=None)
"""The `trace_id`, `span_id` and `request_id` of the request being served in this task, if one is."""


class Log:
    """The log of this process. One instance, `log`, is shared; `configure` names the component and the level."""

    def __init__(self) -> None:
        self.component = "quadrate"
        self.level = INFO
        self._descriptor = 1

    def configure(self, component: str, *, level: str | None = None, descriptor: int = 1) -> None:
        """Name the component, set the level (default: LOG_LEVEL, else INFO), and take in what libraries log from WARN up.

        Raises ConfigError for an unknown level.
        """
        name = (level or os.environ.get("LOG_LEVEL") or "INFO").upper()
        if name not in LEVELS:
            raise ConfigError(f"LOG_LEVEL: {name!r} is no level; allowed: TRACE, DEBUG, INFO, WARN, ERROR, FATAL")
        self.component, self.level, self._descriptor = component, LEVELS[name], descriptor
        logging.basicConfig(handlers=[_Bridge(self)], level=max(self.level, WARN), force=True)

    def trace(self, message: str, **metadata: Any) -> None:
        """What only someone who follows a single request through the code wants to see."""
        self.write(TRACE, message, metadata)

    def debug(self, message: str, **metadata: Any) -> None:
        """What helps to find a fault."""
        self.write(DEBUG, message, metadata)

    def info(self, message: str, **metadata: Any) -> None:
        """What happened, in the normal course."""
        self.write(INFO, message, metadata)

    def warn(self, message: str, **metadata: Any) -> None:
        """What an operator should look at some time."""
        self.write(WARN, message, metadata)

    def error(self, message: str, **metadata: Any) -> None:
        """What failed."""
        self.write(ERROR, message, metadata)

    def fatal(self, message: str, **metadata: Any) -> None:
        """What ends the process."""
        self.write(FATAL, message, metadata)

    def write(self, level: int, message: str, metadata: Mapping[str, Any], request: Mapping[str, str] | None = None) -> None:
        """Write one line, if the level is on. `request` are the ids of a request other than the task's own."""
        if level < self.level:
            return
        line = {
            "timestamp": dt.datetime.now(dt.UTC),
            "level": _NAMES.get(level, "INFO"),
            "component": self.component,
            "message": message,
            "metadata": metadata,
            **(request or current.get() or {}),
        }
        self._emit(orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))

    def _emit(self, line: bytes) -> None:
        try:
            os.write(self._descriptor, line)
        except OSError:  # the reader of our log has gone; requests go on
            self._descriptor = os.open(os.devnull, os.O_WRONLY)


class _Bridge(logging.Handler):
    """Takes what libraries log through `logging` into ours."""

    LEVELS: ClassVar[tuple[int, ...]] = (FATAL, ERROR, WARN, INFO, DEBUG)

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = next((known for known in self.LEVELS if record.levelno >= known), TRACE)
        metadata: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            metadata["exception"] = self.formatter_text(record)
        self._log.write(level, record.getMessage(), metadata)

    @staticmethod
    def formatter_text(record: logging.LogRecord) -> str:
        """Return the traceback of a record as text."""
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


log = Log()


def excepthook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Log what would end the process, in the same form as everything else."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    text = logging.Formatter().formatException((kind, error, traceback))
    log.fatal("the process ends by an error", error=f"{kind.__name__}: {error}", exception=text)
