"""log: one line per event, in the form that its reader needs, without floods and secrets."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from warmproxy.errors import DialRefused, DialTimeout, LimitReached
from warmproxy.log import LogObserver, clean, event, setup, tick
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
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream(clock: Clock) -> io.StringIO:
    stream = io.StringIO()
    setup("json", stream, clock=clock)
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


def test_repeated_failures_of_one_origin_are_one_line_in_30_seconds(
    stream: io.StringIO, clock: Clock
) -> None:
    """The first at once, the others as the last one's line once the time is over."""
    observer = LogObserver()
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
    tick()
    assert written(stream) == []
    clock.now += 1.1
    tick()
    (line,) = written(stream)
    assert line == first | {"failures": 100, "repeated": 99}
    clock.now += 30.0
    tick()
    assert written(stream) == []


def test_the_last_line_about_an_origin_that_works_never_says_that_it_fails(
    stream: io.StringIO, clock: Clock
) -> None:
    observer = LogObserver()
    for _ in range(3):
        observer.dial_failed(A, DialRefused("no"), 1, 1.0)
        observer.dial_failed(A, DialRefused("no"), 2, 1.0)
        observer.dial_recovered(A, 2)
    clock.now += 31.0
    tick()
    found = [(line["event"], line.get("repeated")) for line in written(stream)]
    assert found == [
        ("dial_failed", None),
        ("dial_failed", 1),
        ("dial_recovered", None),
        ("dial_failed", 4),
        ("dial_recovered", 2),
    ]


def test_each_event_of_an_origin_has_its_own_limit(stream: io.StringIO) -> None:
    observer = LogObserver()
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


def test_other_events_may_come_20_times_and_all_are_told_at_the_end(stream: io.StringIO) -> None:
    for number in range(50):
        event("network_changed", suspect=number)
        logging.getLogger("asyncio").warning("%d is a bug", number)
    by_event = [line["event"] for line in written(stream)]
    assert (by_event.count("network_changed"), by_event.count("log")) == (20, 20)
    tick(at_end=True)
    changed, bug = written(stream)
    assert (changed["suspect"], changed["repeated"]) == (49, 30)
    assert (bug["message"], bug["repeated"]) == ("49 is a bug", 30)


def test_exchanges_are_all_told_of_or_a_share(stream: io.StringIO) -> None:
    """A share is drawn by chance, and each line says it; nothing is left out as repeated."""
    for _ in range(100):
        LogObserver(access_log=True).answered("127.0.0.1", "GET", B, 200, 0.1, None)
    assert len(written(stream)) == 100
    chances = iter([0.5, 0.24, 0.25, 0.1])
    sampled = LogObserver(access_log=0.25, rng=lambda: next(chances))
    for status in (200, 201, 202, 203):
        sampled.answered("127.0.0.1", "GET", B, status, 0.1, None)
    assert [(line["status"], line["share"]) for line in written(stream)] == [
        (201, 0.25),
        (203, 0.25),
    ]


def test_harm_and_cost_are_said_as_often_as_they_come(stream: io.StringIO) -> None:
    observer = LogObserver()
    observer.held_back(A, "it answered 503 to an idle connection", 600.0)
    observer.held_back(A, "it answered 503 to an idle connection", 1200.0)
    observer.costly(A, 0.6004, 1200.0)
    first, second, cost = written(stream)
    assert (first["event"], first["level"], first["seconds"]) == ("held_back", "warning", 600)
    assert second["seconds"] == 1200
    assert (cost["event"], cost["idle_limit"], cost["dials_per_minute"]) == ("churning", 0.6, 1200)


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


def test_what_was_left_out_is_told_where_another_form_is_set(stream: io.StringIO) -> None:
    """A reload may change log_format: the counts of before are written in the form of before."""
    for failures in (1, 2, 3):
        LogObserver().dial_failed(A, DialRefused("no"), failures, 1.0)
    setup("text", io.StringIO())
    assert [line.get("repeated") for line in written(stream)] == [None, 2]
