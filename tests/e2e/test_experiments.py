"""The five experiments that started this project, each judged by what the origin saw."""

import http.client
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.daemon import fetch_on, wait_warm
from tests.e2e.harness import CloseWaitWatch, always, at, eventually


def test_connects_come_before_the_first_request_and_two_requests_ride_on_one(
    warmproxy, origin
) -> None:
    """Experiment 1: the configured connections exist before any request, and two requests that
    follow each other ride on one of them without a dial of their own."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=3")
    early = web.wait_open(3)
    assert web.requests == []

    with_session = proxy.connect()
    sent_at = time.monotonic()
    for _ in range(2):
        assert fetch_on(with_session, f"{web.url}/").status == 200
    with_session.close()

    assert all(c.opened_at < sent_at for c in early)
    first, second = web.requests
    assert first.connection is second.connection
    assert first.connection in early
    assert (first.nth, second.nth) == (1, 2)
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") == 1
    assert proxy.count("warmproxy_acquires_total", outcome="used") == 1


@pytest.mark.parametrize("name", ["requests", "curl"])
def test_five_processes_without_a_session_never_wait_for_a_dial(
    warmproxy, origin, client, name
) -> None:
    """Experiment 2: five client processes in a row, none with a session, are each served by a
    connection that was open before the process was even started."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    web.wait_open(2)
    for n in range(1, 6):
        ran = client(name, f"{web.url}/{n}", proxy=proxy)
        assert ran.code == 0, ran.output
        assert web.token in ran.output
        assert [r.target for r in web.requests] == [f"/{i}" for i in range(1, n + 1)]
        assert web.requests[-1].connection.opened_at < ran.started_at
    warm = sum(
        proxy.count("warmproxy_acquires_total", outcome=outcome) for outcome in ("fresh", "used")
    )
    assert warm == 5
    assert proxy.count("warmproxy_acquires_total") == 5


def test_a_server_that_closes_idle_connections_every_second(warmproxy, origin) -> None:
    """Experiment 3: against an origin that closes idle connections after 1 s, for 10 s: no
    CLOSE_WAIT that two looks 100 ms apart both see, at target again each time, no failed
    request."""
    target = 4
    web = origin(idle_fresh=1.0, idle_used=1.0)
    proxy = warmproxy("--warm", f"{web.url}={target}")
    web.wait_open(target)

    began = time.monotonic()
    below_since: float | None = None
    longest_below = 0.0
    answers: list[int] = []

    def look() -> bool:
        nonlocal below_since, longest_below
        now = time.monotonic()
        if len(web.open_connections()) >= target:
            below_since = None
        else:
            below_since = below_since or now
            longest_below = max(longest_below, now - below_since)
        if now - began > len(answers) * 0.33:
            answers.append(proxy.fetch(f"{web.url}/", "GET" if len(answers) % 2 else "POST").status)
        return longest_below < 0.5

    with CloseWaitWatch(web.port) as watch:
        always(look, 10.0, lambda: f"below target for {longest_below} s: {proxy.log()}")
        eventually(lambda: watch.looks > 100, 30)
    assert watch.lingered == {}
    assert len(answers) >= 25
    assert set(answers) == {200}
    assert len(web.requests) == len(answers)
    gone = [c for c in web.connections if c.fin_at is not None and c.eof_at is not None]
    assert len(gone) >= 5 * target, "the origin was to close many idle connections"
    took = [c.eof_at - c.fin_at for c in gone]
    assert statistics.median(took) < 0.1
    assert proxy.count("warmproxy_closed_total", reason="upstream_eof") >= 5 * target
    eventually(lambda: proxy.pool(web.url)["fresh"] >= target, 2, proxy.pools)


def test_three_threads_share_two_connections(warmproxy, origin) -> None:
    """Experiment 4: three threads of three requests each, all at once, with max_connections = 2
    make exactly two connections at the origin."""
    web = origin()
    upstream = {"url": web.url, "warm": 2, "max_connections": 2}
    proxy = warmproxy(config={"upstream": [upstream]})
    web.wait_open(2)

    def three(thread: int) -> list[int]:
        return [proxy.fetch(f"{web.url}/hold?{thread}.{n}").status for n in range(3)]

    with ThreadPoolExecutor(3) as threads:
        results = [threads.submit(three, thread) for thread in range(3)]
        web.wait_requests(2)
        eventually(lambda: proxy.pool(web.url)["waiting"] == 1, says=proxy.pools)
        assert len(web.requests) == 2, "the third was to wait"
        web.gate.set()
        assert [r.result() for r in results] == [[200] * 3] * 3
    assert len(web.requests) == 9
    assert len(web.connections) == 2
    assert proxy.pool(web.url)["waiting"] == 0


def test_500_scheduled_posts_arrive_once_each(warmproxy, origin) -> None:
    """Experiment 5: 500 POSTs on a schedule, to an origin that closes used connections between
    the bursts, get 500 answers, and the origin received each of them exactly once."""
    bursts, width, period = 25, 20, 0.16
    web = origin(idle_used=period / 2, idle_fresh=1.0)
    proxy = warmproxy("--warm", f"{web.url}={width}")
    web.wait_open(width)
    start = time.monotonic() + 0.1

    def client(column: int) -> list[tuple[int, bytes]]:
        connection = proxy.connect()
        try:
            replies = []
            for burst in range(bursts):
                at(start + burst * period)
                body = b"%d.%d" % (burst, column)
                reply = fetch_on(connection, f"{web.url}/echo", "POST", body)
                replies.append((reply.status, reply.body))
            return replies
        finally:
            connection.close()

    with ThreadPoolExecutor(width) as threads:
        columns = list(threads.map(client, range(width)))
    wanted = {b"%d.%d" % (burst, column) for burst in range(bursts) for column in range(width)}
    replies = [reply for column in columns for reply in column]
    assert [status for status, _ in replies] == [200] * 500
    assert {body for _, body in replies} == wanted
    received = [bytes(r.body) for r in web.requests]
    assert len(received) == 500
    assert set(received) == wanted
    assert len({r.connection for r in web.requests}) > width, "connections were to be replaced"


def test_a_burst_as_wide_as_the_pool_needs_no_dial(warmproxy, origin) -> None:
    """As many clients at once as there are warm connections are all served by these: from an
    origin that no longer accepts any."""
    width = 8
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}={width}")
    early = set(map(id, web.wait_open(width)))
    barrier = threading.Barrier(width)

    def one(connection: http.client.HTTPConnection) -> int:
        barrier.wait(10)
        return fetch_on(connection, f"{web.url}/hold").status

    clients = [proxy.connect() for _ in range(width)]
    web.refuse()
    with ThreadPoolExecutor(width) as threads:
        results = [threads.submit(one, connection) for connection in clients]
        web.wait_requests(width)
        web.gate.set()
        assert [r.result() for r in results] == [200] * width
    for connection in clients:
        connection.close()
    assert {id(r.connection) for r in web.requests} == early
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") == width
    wait_warm(proxy, web.url, width)
