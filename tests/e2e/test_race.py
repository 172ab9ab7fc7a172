"""Requests that cross the close of an idle connection on its way."""

import json
import sys
from pathlib import Path

from tests.e2e.daemon import wait_warm, warmproxy_environ
from tests.e2e.harness import ROOT, at
from tests.e2e.origins import Gone

RACE = ROOT / "benchmarks" / "keepalive_race.py"


def test_after_learning_no_request_crosses_a_close(run, tmp_path: Path) -> None:
    """The benchmark in its smallest form: POSTs and GETs that arrive while idle connections are
    being closed, after a fixed time or one of their own (+-30 %). A daemon that knows nothing loses
    POSTs (a 502 each, none came twice); one that has learned loses none, and they are hits."""
    told = tmp_path / "race.json"
    size = ["--lanes", "4", "--lanes-before", "6", "--shots", "12", "--limit", "0.9"]
    args = [sys.executable, str(RACE), "--loopback", *size, "--json", str(told)]
    ran = run([*args, "--python", sys.executable], warmproxy_environ(), timeout=50)
    lines = json.loads(told.read_text())["lines"]
    before = [line for line in lines if not line["learned"]]
    after = [line for line in lines if line["learned"]]
    assert len(before) == len(after) == 4
    assert sum(line["crossed"] for line in before) >= 8, ran.output
    for line in before:
        assert line["wrongly"] == line["doubled"] == 0, ran.output
        assert line["failed"] == (0 if line["used"] else line["crossed"]), ran.output
    for line in after:
        assert line["shots"] == 12
        assert line["crossed"] == line["failed"] == line["doubled"] == 0, ran.output
        assert line["hits"] >= 0.9, ran.output


def test_who_asks_as_often_as_the_origin_closes_learns_it_from_the_lost_races(
    warmproxy, origin
) -> None:
    """Each GET comes when its connection has just been closed: all are answered, by a second try,
    until the pool knows better; from then on none needs one."""
    web = origin()
    usual = web.answer

    def too_late(connection, request) -> None:
        if request.nth > 1 and request.at - connection.requests[-2].at >= 0.8:
            raise Gone
        usual(connection, request)

    web.answer = too_late
    proxy = warmproxy("--warm", f"{web.url}=1")
    client = proxy.connect()

    def replays() -> float:
        return proxy.count("warmproxy_retries_total", reason="stale")

    def ask() -> None:
        client.request("GET", f"{web.url}/")
        with client.getresponse() as response:
            assert (response.status, response.read().decode()) == (200, web.greeting)
        wait_warm(proxy, web.url, 1)

    ask()
    for lost in (1, 2, 3):
        at(web.requests[-1].at + 0.85)
        ask()
        assert replays() == lost
    assert 0.8 <= proxy.pool(web.url)["idle_limits"]["used"] < 1.1
    for _ in range(2):
        at(web.requests[-1].at + 0.85)
        ask()
    assert replays() == 3
