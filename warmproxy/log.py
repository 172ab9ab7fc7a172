"""Events, each one line: text for people on a terminal, a JSON object per line elsewhere.

Event names are stable, for people to search and for machines to match. No line holds credentials
or a query string: addresses are cleaned of both before they are written.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

from warmproxy.errors import DialError, WarmproxyError
from warmproxy.observe import Observer
from warmproxy.origin import Origin

Level = Literal["info", "warning", "error"]
Field = str | int | float | bool | None | list[str] | tuple[str, ...]

QUIET = 30.0
"""Seconds in which an event of one origin is written once."""
REMEMBERED = 4096
"""Origins and events whose last line is remembered: clients choose the names, so there is a cap."""
LONGEST = 400
"""Characters of one field at most."""

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_LOG = logging.getLogger("warmproxy")


def setup(format: str, stream: TextIO, process: int | None = None) -> None:
    """Send events to `stream`, as `text`, `json`, or `auto`: text if it is a terminal. Where there
    are several processes, each line has the number of its own.

    What asyncio reports goes there too, in the same form. Calling it again replaces the first.
    """
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = _Handler(stream)
    handler.setFormatter(_Text() if as_text else _Json())
    handler.process = process
    for logger, level in ((_LOG, logging.INFO), (logging.getLogger("asyncio"), logging.WARNING)):
        for old in [h for h in logger.handlers if isinstance(h, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level)


def event(name: str, /, *, level: Level = "info", **fields: Field) -> None:
    """Write one event with its fields. A field that is None is left out."""
    number = _LEVELS[level]
    if _LOG.isEnabledFor(number):
        _LOG.log(number, name, extra={"event": name, "fields": fields})


class LogObserver(Observer):
    """Writes what the machines tell. `answered` only with `access_log`.

    An event of one origin is written at once and then at most every 30 s; the line then says how
    many were `left_out`. `clock` gives seconds that only grow.
    """

    def __init__(
        self, *, access_log: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.access_log = access_log
        self._clock = clock
        self._last: dict[tuple[str, Origin], tuple[float, int]] = {}
        """(event, origin) -> when it was last written, how many were left out since"""
        self._failing: set[Origin] = set()
        """origins whose last line said that dials fail"""

    def dial_failed(self, origin: Origin, error: DialError, failures: int, retry_in: float) -> None:
        if self._limited(
            "dial_failed",
            origin,
            reason=error.reason,
            result=error.result,
            failures=failures,
            retry_in=round(retry_in, 3),
        ):
            self._failing.add(origin)

    def dial_recovered(self, origin: Origin, failures: int) -> None:
        # Tied to its dial_failed line rather than to the clock, so that the last line is never
        # one that says "fails" about an origin that works.
        if origin in self._failing:
            self._failing.discard(origin)
            event("dial_recovered", origin=str(origin), failures=failures)

    def churning(self, origin: Origin, closes: int, retry_in: float) -> None:
        self._limited("churning", origin, closes=closes, retry_in=round(retry_in, 3))

    def costly(self, origin: Origin, limit: float, dials: float) -> None:
        fields = {"idle_limit": round(limit, 3), "dials_per_minute": round(dials)}
        event("churning", level="warning", origin=str(origin), **fields)

    def held_back(self, origin: Origin, why: str, seconds: float) -> None:
        event("held_back", level="warning", origin=str(origin), reason=why, seconds=round(seconds))

    def prime_failed(self, origin: Origin, why: str, survived: bool) -> None:
        event("prime_failed", level="warning", origin=str(origin), reason=why, survived=survived)

    def prime_given_up(self, origin: Origin, why: str, seconds: float) -> None:
        event(
            "prime_given_up",
            level="warning",
            origin=str(origin),
            reason=why,
            retry_in=round(seconds),
        )

    def learned(self, origin: Origin, target_idle: int) -> None:
        self._limited("learned", origin, level="info", target_idle=target_idle)

    def answered(
        self,
        client: str,
        method: str,
        origin: Origin | None,
        status: int,
        seconds: float,
        error: WarmproxyError | None,
    ) -> None:
        if self.access_log:
            event(
                "answered",
                client=client,
                method=method,
                origin=None if origin is None else str(origin),
                status=status,
                seconds=round(seconds, 6),
                error=None if error is None else error.token,
                reason=None if error is None else error.reason,
            )

    def _limited(
        self, name: str, origin: Origin, *, level: Level = "warning", **fields: Field
    ) -> bool:
        """Write the event unless it was written just now; whether it was."""
        now = self._clock()
        key = (name, origin)
        written, left_out = self._last.get(key, (-QUIET, 0))
        if key in self._last and now - written < QUIET:
            self._last[key] = (written, left_out + 1)
            return False
        self._last.pop(key, None)  # so that the order is that of writing
        if len(self._last) >= REMEMBERED:
            oldest = next(iter(self._last))
            del self._last[oldest]
            self._failing.discard(oldest[1])
        self._last[key] = (now, 0)
        event(name, level=level, origin=str(origin), **fields, left_out=left_out or None)
        return True


class _Handler(logging.StreamHandler[TextIO]):
    process: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.process is not None:
            record.number = self.process
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a reader that went away, or a full disk, must not stop the proxy."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **_parts(record, self),
        }
        return json.dumps(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        parts = _parts(record, self)
        name = parts.pop("event")
        words = [f"{key}={_word(value)}" for key, value in parts.items()]
        return " ".join([moment, f"{record.levelname.lower():<7}", f"{name}", *words])


def _parts(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Field]:
    """The event's name and its fields; what other loggers say is the event `log`."""
    fields: dict[str, Field]
    if hasattr(record, "event"):
        fields = {"event": record.event, **getattr(record, "fields", {})}
    else:
        fields = {"event": "log", "logger": record.name, "message": record.getMessage()}
    if hasattr(record, "number"):
        fields["process"] = record.number
    parts = {key: _clean(value) for key, value in fields.items() if value is not None}
    if record.exc_info:  # ours to mend: whole, whatever its length
        parts["traceback"] = formatter.formatException(record.exc_info)
    return parts


def _clean(value: Field) -> Field:
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def clean(text: str) -> str:
    """A text without the credentials and the query string of addresses in it, and not too long."""
    text = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/\"'<>]*@", r"\1", text)
    text = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s?\"'<>]*)\?[^\s\"'<>]*", r"\1", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _word(value: Field) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            return ",".join(_word(item) for item in value)
        case str() if not value or not value.isprintable() or re.search(r"[\s=\"]", value):
            return json.dumps(value)
        case _:
            return str(value)
