"""log: one line per event, in the form that its reader needs, without floods and secrets."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from warmproxy import log
from warmproxy.errors import DialRefused, DialTimeout, LimitReached
from warmproxy.log import LogObserver, clean, event, setup
from warmproxy.origin import origin

A = origin("tcp", "a.example", 443)
B = origin("http", "b.example", 80)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("warmproxy", "asyncio")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    setup("json", stream)
    return stream


def written(stream: io.StringIO) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    stream.seek(0)
    stream.truncate()
    for line in lines:
        datetime.fromisoformat(line.pop("time"))
    return lines


def test_a_json_line_has_time_level_event_and_fields(stream: io.StringIO) -> None:
    event("listening", proxy=["127.0.0.1:3128", "[::1]:3128"], admin="127.0.0.1:3180", port=1)
    event("accept_paused", level="warning", reason="too many open files", until=None)
    assert written(stream) == [
        {
            "level": "info",
            "event": "listening",
            "proxy": ["127.0.0.1:3128", "[::1]:3128"],
            "admin": "127.0.0.1:3180",
            "port": 1,
        },
        {"level": "warning", "event": "accept_paused", "reason": "too many open files"},
    ]


def test_a_text_line_is_for_people() -> None:
    stream = io.StringIO()
    setup("text", stream)
    event("ready", pools=2, seconds=0.25, all=True, proxy=["127.0.0.1:1", "[::1]:2"])
    event("odd", level="error", empty="", quoted='a "b" = c', line="a\nb\x1b[2J")
    first, second = stream.getvalue().splitlines()
    assert first[8:] == " info    ready pools=2 seconds=0.25 all=true proxy=127.0.0.1:1,[::1]:2"
    assert second[8:] == (r' error   odd empty="" quoted="a \"b\" = c" line="a\nb\u001b[2J"')


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    setup("auto", terminal)
    event("ready")
    setup("auto", pipe)
    event("stopped")
    assert terminal.getvalue().endswith("info    ready\n")
    assert json.loads(pipe.getvalue())["event"] == "stopped"


def test_what_asyncio_reports_comes_in_the_same_form(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("at //h?x")
    except RuntimeError:
        logging.getLogger("asyncio").exception("Task exception was never %s", "retrieved")
    logging.getLogger("asyncio").info("not of interest")
    (line,) = written(stream)
    assert line["event"] == "log"
    assert line["logger"] == "asyncio"
    assert line["message"] == "Task exception was never retrieved"
    assert "RuntimeError: at" in str(line["traceback"])


def test_a_stream_that_cannot_be_written_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    setup("json", stream)
    stream.close()
    event("ready")
    assert capsys.readouterr() == ("", "")


def test_repeated_failures_of_one_origin_are_one_line_in_30_seconds(stream: io.StringIO) -> None:
    clock = Clock()
    observer = LogObserver(clock=clock)
    for failures in range(1, 101):
        observer.dial_failed(A, DialRefused("connection refused"), failures, 1.23456)
        clock.now += 0.29
    observer.dial_failed(B, DialTimeout("too slow"), 1, 0.5)
    first, other = written(stream)
    assert first == {
        "level": "warning",
        "event": "dial_failed",
        "origin": "tcp://a.example:443",
        "reason": "connection refused",
        "result": "refused",
        "failures": 1,
        "retry_in": 1.235,
    }
    assert (other["origin"], other["result"]) == ("http://b.example:80", "timeout")

    clock.now += 1.1
    observer.dial_failed(A, DialRefused("connection refused"), 101, 10.0)
    (line,) = written(stream)
    assert (line["failures"], line["left_out"]) == (101, 99)
    clock.now += 30.0
    observer.dial_failed(A, DialRefused("connection refused"), 102, 10.0)
    (line,) = written(stream)
    assert "left_out" not in line


def test_a_recovery_is_told_once_and_only_if_the_failure_was(stream: io.StringIO) -> None:
    """The last line about an origin that works never says that it fails."""
    clock = Clock()
    observer = LogObserver(clock=clock)
    for _ in range(3):
        observer.dial_failed(A, DialRefused("no"), 1, 1.0)
        observer.dial_recovered(A, 1)
    observer.dial_recovered(B, 4)
    clock.now += 30.0
    observer.dial_failed(A, DialRefused("no"), 1, 1.0)
    observer.dial_recovered(A, 7)
    found = [(line["event"], line["failures"]) for line in written(stream)]
    assert found == [
        ("dial_failed", 1),
        ("dial_recovered", 1),
        ("dial_failed", 1),
        ("dial_recovered", 7),
    ]


def test_each_event_of_an_origin_has_its_own_limit(stream: io.StringIO) -> None:
    observer = LogObserver(clock=Clock())
    for _ in range(3):
        observer.dial_failed(A, DialRefused("no"), 1, 1.0)
        observer.churning(A, 9, 2.0)
        observer.learned(A, 2)
    lines = written(stream)
    assert [(line["event"], line["level"]) for line in lines] == [
        ("dial_failed", "warning"),
        ("churning", "warning"),
        ("learned", "info"),
    ]
    assert (lines[1]["closes"], lines[2]["target_idle"]) == (9, 2)


def test_harm_and_cost_are_said_as_often_as_they_come(stream: io.StringIO) -> None:
    observer = LogObserver(clock=Clock())
    observer.held_back(A, "it answered 503 to an idle connection", 600.0)
    observer.held_back(A, "it answered 503 to an idle connection", 1200.0)
    observer.costly(A, 0.6004, 1200.0)
    first, second, cost = written(stream)
    assert (first["event"], first["level"], first["seconds"]) == ("held_back", "warning", 600)
    assert second["seconds"] == 1200
    assert (cost["event"], cost["idle_limit"], cost["dials_per_minute"]) == ("churning", 0.6, 1200)


def test_what_is_remembered_has_a_cap(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "REMEMBERED", 3)
    observer = LogObserver(clock=Clock())
    for i in range(5):
        observer.dial_failed(origin("tcp", f"h{i}", 1), DialRefused("no"), 1, 1.0)
    assert len(observer._last) == 3
    assert len(observer._failing) == 3
    assert len(written(stream)) == 5
    observer.dial_failed(origin("tcp", "h4", 1), DialRefused("no"), 2, 1.0)
    assert written(stream) == []


def test_exchanges_are_told_only_if_asked_for(stream: io.StringIO) -> None:
    error = LimitReached("no connection became free")
    for access_log in (False, True):
        observer = LogObserver(access_log=access_log)
        observer.answered("127.0.0.1", "GET", B, 200, 0.0123456789, None)
        observer.answered("127.0.0.1", "BREW", None, 503, 10.0, error)
    assert written(stream) == [
        {
            "level": "info",
            "event": "answered",
            "client": "127.0.0.1",
            "method": "GET",
            "origin": "http://b.example:80",
            "status": 200,
            "seconds": 0.012346,
        },
        {
            "level": "info",
            "event": "answered",
            "client": "127.0.0.1",
            "method": "BREW",
            "status": 503,
            "seconds": 10.0,
            "error": "connection_limit_reached",
            "reason": "no connection became free",
        },
    ]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("http://ann:secret@h/p?token=secret", "http://h/p"),
        ("could not reach 'https://ann:secret@h:1/?k=secret', gave up", "'https://h:1/', gave up"),
        ("http://h/a?secret http://h/b?secret", "http://h/a http://h/b"),
        ("http://ann:p@secret@h/", "http://h/"),
        ("what? ann@example.com", "what? ann@example.com"),
        ("x" * 1000, "x" * 400 + "..."),
    ],
)
def test_no_credentials_and_no_query_strings(text: str, cleaned: str) -> None:
    assert clean(text).endswith(cleaned)
    assert "secret" not in clean(text)


def test_fields_are_cleaned(stream: io.StringIO) -> None:
    event("x", url="http://ann:secret@h/?secret", urls=["http://h/?secret"])
    assert written(stream) == [
        {"level": "info", "event": "x", "url": "http://h/", "urls": ["http://h/"]}
    ]
