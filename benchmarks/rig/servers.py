"""Real servers with the settings they come with, each in front of an application that takes 50 ms.

Proxying servers (nginx, Apache, HAProxy, Squid) pass requests on to one Node process whose own
timeouts are off: it is not what is looked at. Every request's path is noted in one file, by which
a request that arrived twice is found.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

THINKS = 0.05
"""Seconds that the application takes: a burst then needs as many connections as it has requests."""
STARTS_WITHIN = 20.0

NODE = """
const fs = require('fs');
const server = require('http').createServer((request, response) => {
  fs.appendFileSync(process.env.SEEN, `${request.method} ${request.url}\\n`);
  request.resume();
  request.on('end', () => setTimeout(() => response.end('hello\\n'), 50));
});
if (process.argv[2] === 'backend') {
  Object.assign(server, {keepAliveTimeout: 0, headersTimeout: 0, requestTimeout: 0});
}
server.listen(Number(process.argv[1]), '127.0.0.1');
"""

PYTHON = f"""
import asyncio, os, time

def note(method, path):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{{method}} {{path}}\\n")

def wsgi(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    note(environ["REQUEST_METHOD"], environ["PATH_INFO"])
    time.sleep({THINKS})
    start_response("200 OK", [("Content-Length", "6")])
    return [b"hello\\n"]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    note(scope["method"], scope["path"])
    await asyncio.sleep({THINKS})
    head = [(b"content-length", b"6")]
    await send({{"type": "http.response.start", "status": 200, "headers": head}})
    await send({{"type": "http.response.body", "body": b"hello\\n"}})
"""

NGINX = """
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 768; }}
http {{
  access_log off;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{backend}; }}
  }}
}}
"""

# What Debian ships in apache2.conf and mods-available/{mpm_event,reqtimeout}.conf.
APACHE = """
ServerRoot {home}
ServerName localhost
PidFile {home}/apache.pid
DefaultRuntimeDir {home}
ErrorLog {home}/error.log
Listen 127.0.0.1:{port}
Timeout 300
KeepAlive On
MaxKeepAliveRequests 100
KeepAliveTimeout 5
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule reqtimeout_module {modules}/mod_reqtimeout.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
StartServers 2
MinSpareThreads 25
MaxSpareThreads 75
ThreadLimit 64
ThreadsPerChild 25
MaxRequestWorkers 150
MaxConnectionsPerChild 0
RequestReadTimeout header=20-40,minrate=500
RequestReadTimeout body=10,minrate=500
User nobody
Group nogroup
ProxyPass / http://127.0.0.1:{backend}/
"""

# The timeouts are those of Debian's haproxy.cfg.
HAPROXY = """
defaults
  mode http
  timeout connect 5000
  timeout client 50000
  timeout server 50000
  {more}
frontend in
  bind 127.0.0.1:{port}
  default_backend application
backend application
  server one 127.0.0.1:{backend}
"""

SQUID = """
http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1
cache_peer 127.0.0.1 parent {backend} 0 no-query originserver
http_access allow all
cache deny all
pid_filename {home}/squid.pid
cache_log {home}/cache.log
access_log none
coredump_dir {home}
"""


@dataclass(frozen=True)
class Place:
    """Where one server runs."""

    home: Path
    port: int
    backend: int
    python: str

    def write(self, name: str, text: str, **values: object) -> str:
        """A file in its folder, filled in; its path."""
        file = self.home / name
        file.write_text(text.format(home=self.home, port=self.port, backend=self.backend, **values))
        return str(file)

    def module(self, name: str, *arguments: str) -> list[str]:
        """A Python server that serves the applications above."""
        (self.home / "application.py").write_text(PYTHON)
        return [self.python, "-m", name, *arguments]


@dataclass(frozen=True)
class Kind:
    """One server with its settings."""

    name: str
    needs: str
    """The program, or `python:` and the package."""
    command: Callable[[Place], list[str]]
    """Writes its configuration and says how it is started, in the foreground."""
    harmed: bool = False
    """One idle connection keeps its only worker: the proxy is to notice, and may take its time."""


def _node(at: Place) -> list[str]:
    return ["node", "-e", NODE, str(at.port)]


def _nginx(at: Place) -> list[str]:
    return ["nginx", "-p", str(at.home), "-c", at.write("nginx.conf", NGINX), "-e", "stderr"]


def _apache(at: Place) -> list[str]:
    modules = "/usr/lib/apache2/modules"
    return ["apache2", "-f", at.write("apache.conf", APACHE, modules=modules), "-DFOREGROUND"]


def _haproxy(more: str) -> Callable[[Place], list[str]]:
    return lambda at: ["haproxy", "-db", "-f", at.write("haproxy.cfg", HAPROXY, more=more)]


def _squid(at: Place) -> list[str]:
    return ["squid", "-N", "-f", at.write("squid.conf", SQUID)]


def _gunicorn(*arguments: str) -> Callable[[Place], list[str]]:
    return lambda at: at.module(
        "gunicorn", *arguments, "--bind", f"127.0.0.1:{at.port}", "application:wsgi"
    )


def _uvicorn(at: Place) -> list[str]:
    return at.module("uvicorn", "--port", str(at.port), "--log-level", "error", "application:asgi")


def _hypercorn(at: Place) -> list[str]:
    return at.module("hypercorn", "--bind", f"127.0.0.1:{at.port}", "application:asgi")


def _waitress(at: Place) -> list[str]:
    return at.module("waitress", "--listen", f"127.0.0.1:{at.port}", "application:wsgi")


KINDS = (
    Kind("Node http", "node", _node),
    Kind("nginx", "nginx", _nginx),
    Kind("Apache event", "apache2", _apache),
    Kind("HAProxy", "haproxy", _haproxy("")),
    Kind("HAProxy, http-request 10s", "haproxy", _haproxy("timeout http-request 10s")),
    Kind("Squid accelerator", "squid", _squid),
    Kind("uvicorn", "python:uvicorn", _uvicorn),
    Kind("hypercorn", "python:hypercorn", _hypercorn),
    Kind("waitress", "python:waitress", _waitress),
    Kind("gunicorn gthread", "python:gunicorn", _gunicorn("--threads", "4")),
    Kind("gunicorn sync", "python:gunicorn", _gunicorn(), harmed=True),
)

_VERSIONS: Mapping[str, list[str]] = {
    "node": ["node", "--version"],
    "curl": ["curl", "--version"],
    "chromium": ["chromium", "--version"],
    "nginx": ["nginx", "-v"],
    "apache2": ["apache2", "-v"],
    "haproxy": ["haproxy", "-v"],
    "squid": ["squid", "-v"],
}


def version(needs: str, python: str) -> str:
    """`nginx 1.22.1`, or "" where it is not installed."""
    package = needs.removeprefix("python:")
    command = _VERSIONS.get(needs) or [
        *[python, "-c"],
        f"import importlib.metadata as m; print({package!r}, m.version({package!r}))",
    ]
    if shutil.which(command[0], path=_PATH) is None:
        return ""
    asked = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}
    )
    words = (asked.stdout + asked.stderr).replace("/", " ").split() if not asked.returncode else []
    number = next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit()), "")
    return f"{package} {number}" if number else ""


def free_port() -> int:
    """A loopback port that nobody listens at; below the range that outgoing connections take."""
    for port in _PORTS:
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


@contextlib.contextmanager
def running(
    command: list[str], home: Path, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once its port accepts connections; it and its children are gone afterwards.

    Raises RuntimeError, with what it said, where it does not come up.
    """
    log = home / "output"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={**kept, "PATH": _PATH, **(environment or {})},
            start_new_session=True,
        )
    try:
        give_up = time.monotonic() + STARTS_WITHIN
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{command[0]} does not come up:\n{log.read_text()}")
            time.sleep(0.02)
        yield process
    finally:
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def node_backend(port: int) -> list[str]:
    """The application behind the servers that only pass on."""
    return ["node", "-e", NODE, str(port), "backend"]


def _accepts(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


_PORTS = iter(range(21000, 22000))
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin"
