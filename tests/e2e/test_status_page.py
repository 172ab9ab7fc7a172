"""The status page as a browser gets it from a running daemon, and the same on a terminal."""

import contextlib
import fcntl
import http.client
import json
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.daemon import Warmproxy, command, wait_warm, warmproxy_environ
from tests.e2e.harness import eventually

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def browser(stack: contextlib.ExitStack, home: Callable[[str], Path]) -> Browser:
    made = Browser(home("browser"))
    stack.callback(made.close)
    return made


def get(proxy: Warmproxy, path: str, **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response, response.read().decode()


def test_a_browser_gets_the_page_and_a_program_the_index(warmproxy, origin) -> None:
    """What asks for text/html gets the page with its policy; curl gets what it had; HEAD gets no
    body."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    response, text = get(proxy, "/", **HTML)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert (response.headers["Vary"], response.headers["Cache-Control"]) == ("Accept", "no-store")
    assert text.rstrip().endswith("</html>")
    assert f"{web.url}" in text
    response, text = get(proxy, "/", Accept="*/*")
    assert response.headers["Content-Type"].startswith("text/plain")
    assert "/metrics" in text
    said = proxy.pools()[web.url]
    assert (said["dial_failures"], said["costly"], said["below_target_for"]) == (0, False, 0)


def test_a_reader_finds_the_table_with_scripts_off(warmproxy, origin, browser) -> None:
    """In a real browser without scripts: the table's text by its roles, what needs attention, a
    light and a dark form, no complaint, and no request but for the page itself."""
    web, late = origin(), origin(listening=False)
    upstreams = [
        {"url": web.url, "warm": 3},
        {"url": late.url, "warm": 2, "backoff_max": 0.1},
    ]
    proxy = warmproxy(config={"ready_timeout": 0.1, "upstream": upstreams})
    for _ in range(4):
        assert proxy.fetch(f"{web.url}/?secret=1").status == 200
    wait_warm(proxy, web.url, 3)
    eventually(lambda: proxy.pool(late.url)["dial_failures"] > 1)
    address = f"http://{proxy.admin}/?refresh=0"
    browser.go(address)
    assert browser.readable("rowheader") == [late.url, web.url]
    heads = browser.readable("columnheader")
    assert [heads[i] for i in (0, 1, 7)] == ["Origin", "Warm", "Hit ratio"]
    cells = browser.readable("cell", "gridcell")
    assert len(cells) == 2 * (len(heads) - 1)
    row = dict(zip(heads[1:], cells[len(heads) - 1 :], strict=True))
    assert "/3" in row["Warm"]
    assert row["Hit ratio"].startswith("100 %")
    assert browser.readable("table") == ["2 origins."]
    text = " ".join(browser.readable("StaticText"))
    assert re.search(r"the last \d+ dials failed: .* refused the connection", text)
    light, dark = browser.background("light"), browser.background("dark")
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    assert browser.complaints() == []
    elsewhere = [u for u in browser.requested() if not u.startswith(("data:", address))]
    assert elsewhere == []


def test_it_refreshes_itself_and_obeys_the_keyboard(warmproxy, origin, browser) -> None:
    """A page with ?refresh=1 is asked for again and again; Tab leads to the table and its heads,
    and Enter sorts."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    browser.go(f"http://{proxy.admin}/?refresh=1")
    browser.wait_for("Page.loadEventFired", len(browser.seen("Page.loadEventFired")) + 2)
    browser.go(f"http://{proxy.admin}/?refresh=0")
    stops = []
    for _ in range(5):
        browser.press("Tab", 9)
        stops.append(browser.focused())
    assert stops[:2] == ["To the table", "start again"]
    assert stops[3:] == ["Origin", "Warm"]
    loads = len(browser.seen("Page.loadEventFired"))
    browser.press("Enter", 13, "\r")
    browser.wait_for("Page.loadEventFired", loads + 1)
    assert any(url.endswith("/?sort=warm&refresh=0") for url in browser.requested())
    assert browser.complaints() == []


def test_several_processes_are_one_page(warmproxy, origin) -> None:
    """Where several processes serve, the page and /pools say the sums, each origin once."""
    web = origin()
    proxy = warmproxy(config={"processes": 2, "upstream": [{"url": web.url, "warm": 4}]})
    for _ in range(6):
        assert proxy.fetch(f"{web.url}/").status == 200
    eventually(lambda: proxy.pool(web.url)["fresh"] + proxy.pool(web.url)["used"] >= 4)
    _, text = get(proxy, "/", **HTML)
    assert text.count(f"<span>{web.url}</span>") == 1
    assert "6 of 6" in text
    said = json.loads(proxy.admin_get("/pools").body)
    assert said["totals"]["hits"] == 6
    assert (said["daemon"]["accepting"], said["daemon"]["draining"]) == (True, False)
    assert "warm_lately" not in said["pools"][0]
    eventually(lambda: sum(json.loads(proxy.admin_get("/pools").body)["history"]["hits"]) == 6, 25)


# ── on a terminal ────────────────────────────────────────────────────────────────────────────


class Terminal:
    """`warmproxy status --watch` on a terminal of so many columns and lines."""

    def __init__(self, proxy: Warmproxy, columns: int, lines: int, **environ: str) -> None:
        words = command("status", "--watch", "0.2", "--admin", proxy.admin)
        env = warmproxy_environ(TERM="xterm-256color", **environ)
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(words[0], words, env)
        self.raw = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds: float) -> bool:
        """What comes within so long; False at the end."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                try:
                    self.raw += os.read(self._fd, 65536)
                except OSError:  # EIO: the other side is gone
                    return False
        return True

    def frame(self) -> list[str]:
        """The lines of the last whole picture."""
        frames = re.split(rb"\x1b\[H(?:\x1b\[2J)?", self.raw)
        text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", frames[-2] if len(frames) > 1 else b"")
        return [line.rstrip() for line in text.decode(errors="replace").splitlines()]

    def until(self, holds: Callable[[list[str]], object]) -> list[str]:
        def look() -> object:
            self.read(0.1)
            return holds(self.frame())

        eventually(look, timeout=20.0, says=lambda: self.raw[-3000:])
        return self.frame()

    def ctrl_c(self) -> int:
        """Its exit status after Ctrl-C."""
        os.write(self._fd, b"\x03")
        while self.read(0.1):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*args: object, **environ: str) -> Terminal:
        made.append(Terminal(*args, **environ))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(one.pid, os.WNOHANG)[0] == 0:
                os.kill(one.pid, signal.SIGKILL)
                os.waitpid(one.pid, 0)
        os.close(one._fd)


def test_the_terminal_shows_the_same_in_whatever_width(warmproxy, origin, terminal) -> None:
    """The table with its squares; a window made narrow loses columns and no line is longer than
    it; Ctrl-C leaves the terminal as it was, with 0."""
    pytest.importorskip("rich")
    web, late = origin(), origin(listening=False)
    upstreams = [{"url": web.url, "warm": 3}, {"url": late.url, "warm": 2, "backoff_max": 0.1}]
    proxy = warmproxy(config={"ready_timeout": 0.1, "upstream": upstreams})
    window = terminal(proxy, 180, 24)
    lines = window.until(lambda lines: any("■■■ 3/3" in line for line in lines))
    assert any("LAST CLOSE" in line for line in lines)
    assert any(line.startswith(f"! {late.url}: the last") for line in lines)
    window.resize(50, 12)
    lines = window.until(
        lambda lines: any("3/3" in line for line in lines) and max(map(len, lines)) <= 50
    )
    assert len(lines) <= 12
    assert not any("LAST CLOSE" in line for line in lines)
    proxy.stop()
    window.until(lambda lines: lines[:1] and lines[0].startswith("nothing listens"))
    assert window.ctrl_c() == 0
    assert window.raw.rstrip().endswith(b"\x1b[?1049l")
    assert window.raw.count(b"\x1b[?25l") <= window.raw.count(b"\x1b[?25h")
    assert b"Traceback" not in window.raw


def test_the_terminal_without_the_extra_is_drawn_plainly(
    warmproxy, origin, terminal, tmp_path
) -> None:
    """Where rich is not installed the table is written anew each time, and how to get more."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('rich')")
    there = warmproxy_environ()["PYTHONPATH"]
    window = terminal(proxy, 180, 24, PYTHONPATH=f"{tmp_path}:{there}")
    lines = window.until(lambda lines: any("warmproxy[watch]" in line for line in lines))
    assert any(line.startswith(web.url) and "2/2" in line for line in lines)
    assert window.ctrl_c() == 0
