"""The shell commands of README.md and docs/, found in the pages and run as a reader would.

A page is one sitting: its commands run one after the other in one folder, what is exported in one
fence holds in the next, and what keeps running does so in a terminal of its own until another of
its kind is started. All of it in a network of its own, where the ports of the pages are free, no
other machine can be reached, and api.example.com is a server of this process.

The line before a fence may say what is not in it:

    <!-- not run: WHY -->       not here, or not at all
    <!-- keeps running -->      a server: it is waited for until it answers, and left
    <!-- beside: COMMAND -->    a server that the reader of this place has running
    <!-- file: NAME -->         a settings file, which the commands find under this name

As a program (`python -m tests.documented PAGE`, in that network) it runs a page, and ends
with 1 and a sentence on the first command that does not do what the page says.
"""

import contextlib
import http.client
import os
import pty
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.e2e.harness import OWN_NETWORK, ROOT, accepts, clean_environ, eventually, need
from tests.e2e.origins import Origin

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("sh", "console")
NAME, SECOND = "api.example.com", "10.0.0.5"
"""The servers that the pages speak of: https and http at the first, http on 8080 at the second."""
PROXY, ADMIN = 3128, 3180
BOUND = 20.0
"""Seconds for a fence."""


@dataclass(frozen=True)
class Fence:
    line: int
    kind: str
    """what follows the three marks"""
    text: str
    marks: dict[str, str]

    @property
    def steps(self) -> list[tuple[str, str]]:
        """(command, output shown): of a console each line after a `$`, else all of it."""
        if self.kind == "sh":
            return [(self.text, "")]
        _, *parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        return [(command, shown) for command, _, shown in (p.partition("\n") for p in parts)]


def fences(text: str) -> Iterator[Fence]:
    """Each fenced block of a page."""
    lines = iter(enumerate(text.splitlines(), start=1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            block = list(iter(lambda: next(lines)[1], "```"))
            marks = {}
            if said := re.fullmatch(r"<!-- ([a-z ]+)(?:: (.*))? -->", before):
                marks[said[1]] = said[2] or ""
            yield Fence(number, line[3:], "\n".join(block) + "\n", marks)
        before = line


def pattern(shown: str) -> str:
    """A regular expression for output like the one that is shown. Times of day, versions and
    numbers with a fraction differ from run to run, and so does the room between columns; `...`
    stands for whatever there is, alone on a line for any lines."""

    def varied(found: re.Match[str]) -> str:
        match found.lastgroup:
            case "lines":
                return r"(?:.*\n)*?"
            case "dots":
                return ".*"
            case "clock":
                return r"\d\d:\d\d:\d\d"
            case "version":
                return r"\d+\.\d+\.\d+"
            case "number":
                return r"\d+(?:\.\d+)?" + (r" m?s\b" if found["unit"] else "")
            case "room":
                return r"[ ]+"
        return re.escape(found[0])

    tokens = (
        r"(?P<lines>^ *\.\.\.\n)|(?P<dots>\.\.\.)|(?P<clock>\d\d:\d\d:\d\d)"
        r"|(?P<address>\d+(?:\.\d+){3})|(?P<version>\d+\.\d+\.\d+)"
        r"|(?P<number>\d+\.\d+(?P<unit> m?s\b)?)(?!\w)|(?P<room>[ ]+)"
        r"|(?P<other>[^ .\d\n]+|\d+|.|\n)"
    )
    return re.sub(tokens, varied, shown, flags=re.MULTILINE)


class Terminal:
    """One command in a terminal of its own: on one, warmproxy speaks to people."""

    def __init__(self, script: str, folder: Path, env: dict[str, str]) -> None:
        self.script = script
        self._output = bytearray()
        ours, theirs = pty.openpty()
        self.popen = subprocess.Popen(
            ["sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=env,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(ours, 1 << 16):
                self._output += data
        os.close(ours)

    def output(self) -> str:
        return self._output.decode().replace("\r\n", "\n")

    def ended(self) -> int:
        """Its exit status, once it has come to its end."""
        status = self.popen.wait(BOUND)
        self._reader.join(BOUND)
        return status

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)
        self.popen.wait(BOUND)


class Wrong(Exception):
    """A command does not do what its page says."""


class Reader:
    """Who follows a page in `folder`, with a clone of the repository that is set up."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self._folder = folder
        self._servers: dict[str, Terminal] = {}
        self._clone()
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        self._env = clean_environ(
            HOME=str(folder),
            PATH=f"{folder}/.venv/bin:{os.environ['PATH']}",
            PYTHONPATH=str(ROOT),
            SSL_CERT_FILE=str(certificates),
            CURL_CA_BUNDLE=str(certificates),
            XDG_RUNTIME_DIR=str(runtime),
            XDG_STATE_HOME=str(folder / "state"),
            TERM="dumb",
        )

    def _clone(self) -> None:
        for name in ("run", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
            shutil.copy(ROOT / name, self._folder)
        shutil.copytree(ROOT / "config", self._folder / "config")
        programs = self._folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, runs in {"python": "", "python3": "", "warmproxy": "-m warmproxy"}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {runs} "$@"\n')
            (programs / name).chmod(0o755)
        locked = [self._folder / "requirements-dev.lock", self._folder / "pyproject.toml"]
        installed = b"".join(path.read_bytes() for path in locked)
        (programs.parent / "installed").write_bytes(installed)  # as `run` says that it is

    def follow(self, fence: Fence) -> None:
        """Do what the fence says, or raise Wrong."""
        if "file" in fence.marks:
            (self._folder / fence.marks["file"]).write_text(fence.text)
        if "beside" in fence.marks:
            self._serve(fence.marks["beside"], "")
        if fence.kind not in SHELL or "not run" in fence.marks:
            return
        for command, shown in fence.steps:
            if "keeps running" in fence.marks:
                self._serve(command, shown)
            else:
                self._run(command, shown)

    def _run(self, command: str, shown: str) -> None:
        # what it exports is there for what follows
        script = f"{command}\n{sys.executable} -c '{_TELL}'"
        terminal = Terminal(script, self._folder, self._env)
        try:
            status = terminal.ended()
        except subprocess.TimeoutExpired:
            terminal.stop()
            status = -1
        said = terminal.output()
        if status != 0:
            raise Wrong(f"exit status {status} of\n{command}\n{said}")
        if shown and not re.search(f"^{pattern(shown)}", said, re.MULTILINE):
            raise Wrong(f"{command}\nshows\n{shown}\nand says\n{said}")
        told = (self._folder / ".exported").read_bytes().decode().rstrip("\0").split("\0")
        self._env = dict(pair.partition("=")[::2] for pair in told)

    def _serve(self, command: str, shown: str) -> None:
        kind = "server" if "http.server" in command else "proxy"
        if kind in self._servers:
            self._end(kind)
        server = Terminal(f"exec {command}", self._folder, self._env)
        self._servers[kind] = server
        port = ADMIN if kind == "proxy" else 8080

        def there() -> bool:
            if server.popen.poll() is not None:
                raise Wrong(f"{command}\nended:\n{server.output()}")
            if shown and not re.search(f"^{pattern(shown)}", server.output(), re.MULTILINE):
                return False
            return ready() if kind == "proxy" else accepts(port)

        try:
            eventually(there, BOUND, server.output)
        except AssertionError as error:
            raise Wrong(f"{command}\nshows\n{shown}\nand says\n{error}") from error

    def _end(self, kind: str) -> None:
        server = self._servers.pop(kind)
        server.stop(signal.SIGINT)
        if server.popen.returncode != 0:
            raise Wrong(f"Ctrl-C: {server.popen.returncode} of\n{server.script}\n{server.output()}")

    def leave(self) -> None:
        """Ctrl-C for whatever keeps running, and Wrong if one does not take it well."""
        for kind in list(self._servers):
            self._end(kind)

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


_TELL = """
import os
open(".exported", "wb").write(b"".join(k + b"=" + v + bytes(1) for k, v in os.environb.items()))
"""


def ready() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def world(folder: Path) -> Iterator[Path]:
    """The servers that the pages name; the file with the authority to trust."""
    hosts, certificates = folder / "hosts", folder / "ca.pem"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    subprocess.run([need("mount"), "--bind", str(hosts), "/etc/hosts"], check=True)
    subprocess.run([need("ip"), "addr", "add", f"{SECOND}/32", "dev", "lo"], check=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(certificates))
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.set_alpn_protocols(["http/1.1"])
    authority.issue_cert(NAME).configure_cert(secure)
    with contextlib.ExitStack() as servers:
        for server in (
            Origin(tls=secure, port=443),
            Origin(port=80),
            Origin(host=SECOND, port=8080),
        ):
            servers.callback(server.close)
        yield certificates


def main(page: Path) -> int:
    assert OWN_NETWORK in os.environ, "this machine's network is not for tests"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.ExitStack() as stack:
        # a short name: the control socket's path has 107 bytes at most
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="page-")))
        certificates = stack.enter_context(world(folder))
        home = folder / "clone"
        home.mkdir()
        reader = Reader(home, certificates)
        line = 0
        try:
            for fence in fences(page.read_text(encoding="utf-8")):
                line = fence.line
                reader.follow(fence)
            reader.leave()
        except Wrong as wrong:
            print(f"{page.relative_to(ROOT)}:{line}: {wrong}", file=sys.stderr)
            return 1
        finally:
            reader.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
