"""Events, each one line: text for people on a terminal, a JSON object per line elsewhere.

Event names are stable, for people to search and for machines to match. No line holds credentials
or a query string: addresses are cleaned of both before they are written. What repeats is one line
with a count.
"""

import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Literal, TextIO

from warmproxy.errors import DialError, WarmproxyError
from warmproxy.observe import Observer
from warmproxy.origin import Origin
from warmproxy.policy.repeat import Repeats

Level = Literal["info", "warning", "error"]
Field = str | int | float | bool | None | list[str] | tuple[str, ...]

MOST = 20
"""Times that an event of one origin is written in 30 seconds, where nothing else is said."""
LONGEST = 400
"""Characters of one field at most."""

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_LOG = logging.getLogger("warmproxy")


def setup(
    format: str,
    stream: TextIO,
    process: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send events to `stream`, as `text`, `json`, or `auto`: text if it is a terminal. Where there
    are several processes, each line has the number of its own.

    What asyncio reports goes there too, in the same form. Calling it again replaces the first.
    `clock` gives seconds that only grow.
    """
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = _Handler(stream, clock)
    handler.setFormatter(_Text() if as_text else _Json())
    handler.process = process
    for logger, level in ((_LOG, logging.INFO), (logging.getLogger("asyncio"), logging.WARNING)):
        for old in [h for h in logger.handlers if isinstance(h, _Handler)]:
            old.tell_repeated(at_end=True)
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level)


def event(name: str, /, *, level: Level = "info", most: int = MOST, **fields: Field) -> None:
    """Write one event with its fields. A field that is None is left out.

    Where more than `most` (0: no limit) with that `origin` come within 30 seconds, the others are
    one line afterwards: the last one's, with how often it was `repeated`.
    """
    number = _LEVELS[level]
    if _LOG.isEnabledFor(number):
        _LOG.log(number, name, extra={"event": name, "fields": fields, "most": most})


def unraisable(what: "sys.UnraisableHookArgs") -> None:
    """For sys.unraisablehook: one line for what Python could not raise, as when a client asks for a
    TLS name that is not ASCII."""
    event("log", level="error", logger="python", message=f"{what.exc_value!r} in {what.object!r}")


def tick(*, at_end: bool = False) -> None:
    """Write what was repeated and is due, or (`at_end`) all of it: asked once a second."""
    for handler in _LOG.handlers:
        if isinstance(handler, _Handler):
            handler.tell_repeated(at_end=at_end)


class LogObserver(Observer):
    """Writes what the machines tell.

    `access_log` is the share of exchanges that are told of, True for all; `rng` gives numbers from
    0 to 1, by which they are chosen.
    """

    def __init__(
        self, *, access_log: float = False, rng: Callable[[], float] = random.random
    ) -> None:
        self.access_log = access_log
        self._rng = rng

    def dial_failed(self, origin: Origin, error: DialError, failures: int, retry_in: float) -> None:
        event(
            "dial_failed",
            level="warning",
            most=1,
            origin=str(origin),
            reason=error.reason,
            result=error.result,
            failures=failures,
            retry_in=round(retry_in, 3),
        )

    def dial_recovered(self, origin: Origin, failures: int) -> None:
        event("dial_recovered", most=1, origin=str(origin), failures=failures)

    def churning(self, origin: Origin, closes: int, retry_in: float) -> None:
        event(
            "churning",
            level="warning",
            most=1,
            origin=str(origin),
            closes=closes,
            retry_in=round(retry_in, 3),
        )

    def costly(self, origin: Origin, limit: float, dials: float) -> None:
        event(
            "churning",
            level="warning",
            origin=str(origin),
            idle_limit=round(limit, 3),
            dials_per_minute=round(dials),
        )

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

    def intercept_refused(self, client: str, origin: Origin, why: str, falls_back: bool) -> None:
        event(
            "intercept_refused",
            level="warning",
            client=client,
            origin=str(origin),
            reason=why,
            next="a blind tunnel" if falls_back else "the same again (intercept_fallback)",
        )

    def learned(self, origin: Origin, target_idle: int) -> None:
        event("learned", most=1, origin=str(origin), target_idle=target_idle)

    def answered(
        self,
        client: str,
        method: str,
        origin: Origin | None,
        status: int,
        seconds: float,
        error: WarmproxyError | None,
    ) -> None:
        share = self.access_log
        if share and (share >= 1 or self._rng() < share):
            event(
                "answered",
                most=0,
                client=client,
                method=method,
                origin=None if origin is None else str(origin),
                status=status,
                seconds=round(seconds, 6),
                error=None if error is None else error.token,
                reason=None if error is None else error.reason,
                share=share if share < 1 else None,
            )


class _Handler(logging.StreamHandler[TextIO]):
    """Leaves out what repeats, and tells how often."""

    process: int | None = None

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream)
        self._clock = clock
        self._repeats = Repeats[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        if self.process is not None:
            record.number = self.process
        name: str = getattr(record, "event", "log")
        most: int = getattr(record, "most", MOST)
        # what others say is the same where it has the same form
        key = getattr(record, "fields", {}).get("origin") if name != "log" else str(record.msg)
        if most:
            self._write(self._repeats.hear(key, name, most, record, self._clock()))
        else:
            super().emit(record)

    def tell_repeated(self, *, at_end: bool) -> None:
        with self.lock or nullcontext():
            self._write(self._repeats.rest() if at_end else self._repeats.due(self._clock()))

    def _write(self, lines: list[tuple[logging.LogRecord, int]]) -> None:
        for record, times in lines:
            if times:
                record.repeated = times
                record.created = time.time()
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
    if hasattr(record, "repeated"):
        parts["repeated"] = record.repeated
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
