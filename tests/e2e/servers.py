"""Real servers as origins: Node, nginx, Apache, gunicorn, uvicorn, HAProxy."""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import Process, accepts, free_port, missing, need

NODE_SERVER = """
const http = require('http');
const began = process.hrtime.bigint();
const log = (event) => process.stdout.write(JSON.stringify(event) + '\\n');
let connections = 0;
const settings = JSON.parse(process.argv[2]);
const server = http.createServer(settings, (request, response) => {
  request.socket.served += 1;
  log({event: 'request', connection: request.socket.number, nth: request.socket.served,
       method: request.method, target: request.url, headers: request.headers});
  let size = 0;
  request.on('data', (data) => { size += data.length; });
  const answer = () => response.end(`hello from node, ${size} bytes\\n`);
  const wait = request.url.match(/^\\/delay\\/([0-9.]+)$/);
  request.on('end', () => wait ? setTimeout(answer, 1000 * wait[1]) : answer());
});
server.on('connection', (socket) => {
  socket.number = ++connections;
  socket.served = 0;
  log({event: 'connect', connection: socket.number});
  socket.on('close', () => log({event: 'close', connection: socket.number}));
});
Object.assign(server, settings);
server.listen(Number(process.argv[1]), '127.0.0.1', () => log({event: 'listening'}));
"""


class Server(Process):
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class NodeServer(Server):
    """Node's `http` with all its defaults (keepAliveTimeout 5 s), logging what it sees."""

    def __init__(self, home: Path, settings: dict[str, int]) -> None:
        self.port = free_port()
        node = need("node")
        # With `-e` the arguments begin at argv[1].
        args = [node, "-e", NODE_SERVER, str(self.port), json.dumps(settings)]
        super().__init__(args, home / "node.log", home)
        self.until(lambda: self.events("listening"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        whole = [line for line in self.log().splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in whole if line.startswith("{")]
        return [event for event in found if event["event"] == kind]


NGINX_CONF = """
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
  log_format seen '$connection $connection_requests $request_method $request_uri $status';
  access_log {home}/access.log seen;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  client_max_body_size 0;
  {settings}
  server {{
    listen 127.0.0.1:{port};
    root {home}/www;
  }}
}}
"""


class NginxServer(Server):
    """nginx serving `www/`, one access line per request: connection, nth, method, uri, status."""

    def __init__(self, home: Path, settings: str) -> None:
        self.port = free_port()
        self.www = home / "www"
        self.www.mkdir()
        (self.www / "hello.txt").write_text("hello from nginx\n")
        self._access = home / "access.log"
        conf = home / "nginx.conf"
        conf.write_text(NGINX_CONF.format(home=home, port=self.port, settings=settings))
        args = [need("nginx"), "-p", str(home), "-c", str(conf), "-e", "stderr"]
        super().__init__(args, home / "nginx.log", home)
        self.until(lambda: accepts(self.port))

    def seen(self) -> list[tuple[str, int, str, str, int]]:
        """(connection, nth request on it, method, uri, status) of each request so far."""
        rows = []
        for line in self._access.read_text().splitlines():
            connection, nth, method, uri, status = line.split(" ")
            rows.append((connection, int(nth), method, uri, int(status)))
        return rows


class GunicornServer(Server):
    """httpbin under gunicorn; `settings` are its arguments."""

    def __init__(self, home: Path, settings: Sequence[str]) -> None:
        try:
            import gunicorn  # noqa: F401
            import httpbin  # noqa: F401
        except ImportError as error:
            missing(f"the Python package {error.name}")
        args = [
            *[sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0"],
            *["--graceful-timeout", "1", "--access-logfile", "-", *settings, "httpbin:app"],
        ]
        super().__init__(args, home / "gunicorn.log", home)
        found = self.until(lambda: re.search(r"Listening at: http://127.0.0.1:(\d+)", self.log()))
        self.port = int(found[1])
        self.until(lambda: "Booting worker" in self.log())


class HttpbinServer(GunicornServer):
    """With threads: a sync worker is blocked by any idle connection."""

    def __init__(self, home: Path, keep_alive: int) -> None:
        threads = ["--worker-class", "gthread", "--threads", "16"]
        super().__init__(home, [*threads, "--keep-alive", str(keep_alive)])


SLOW_APP = """
import asyncio

async def app(scope, receive, send):
    if scope['type'] == 'http':
        await asyncio.sleep(float(scope['path'].removeprefix('/delay/') or 0))
        head = {'status': 200, 'headers': [(b'content-length', b'6')]}
        await send({'type': 'http.response.start'} | head)
        await send({'type': 'http.response.body', 'body': b'hello\\n'})
"""


class UvicornServer(Server):
    """uvicorn with its defaults; `/delay/N` answers after N seconds."""

    def __init__(self, home: Path, args: list[str]) -> None:
        (home / "slow.py").write_text(SLOW_APP)
        self.port = free_port()
        args = [sys.executable, "-m", "uvicorn", "--port", str(self.port), *args, "slow:app"]
        super().__init__(args, home / "uvicorn.log", home)
        self.until(lambda: accepts(self.port))


HAPROXY_CONF = """
defaults
  mode http
  timeout connect 5s
  timeout server 30s
  timeout client 30s
  timeout http-request {http_request}
frontend in
  bind 127.0.0.1:{port}
  {rules}
"""


class HaproxyServer(Server):
    """HAProxy answering by itself; it writes a 408 on a connection that stays silent."""

    def __init__(self, home: Path, http_request: str) -> None:
        self.port = free_port()
        conf = home / "haproxy.cfg"
        rules = 'http-request return status 200 content-type text/plain string "from haproxy"'
        conf.write_text(HAPROXY_CONF.format(port=self.port, http_request=http_request, rules=rules))
        super().__init__([need("haproxy"), "-db", "-f", str(conf)], home / "haproxy.log", home)
        self.until(lambda: accepts(self.port))


APACHE_CONF = """
ServerRoot {home}
ServerName localhost
PidFile {home}/apache.pid
DefaultRuntimeDir {home}
ErrorLog {home}/error.log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule alias_module {modules}/mod_alias.so
User nobody
Group nogroup
RedirectMatch 204 .
LogFormat "%{{c}}p-%{{remote}}p %k %m %U %>s" seen
CustomLog {home}/access.log seen
{settings}
"""


class ApacheServer(Server):
    """Apache that answers 204 to everything (its workers may not read a test's files); one access
    line per request: connection, requests before it there, method, path, status."""

    def __init__(self, home: Path, settings: str) -> None:
        self.port = free_port()
        self._access = home / "access.log"
        conf = home / "apache.conf"
        modules = "/usr/lib/apache2/modules"
        text = APACHE_CONF.format(home=home, port=self.port, modules=modules, settings=settings)
        conf.write_text(text)
        super().__init__(
            [need("apache2"), "-f", str(conf), "-DFOREGROUND"], home / "apache.log", home
        )
        self.until(lambda: accepts(self.port))

    def seen(self) -> list[tuple[str, int, str, str, int]]:
        """(connection, nth request on it, method, path, status) of each request so far."""
        rows = []
        for line in self._access.read_text().splitlines():
            connection, before, method, path, status = line.split(" ")
            rows.append((connection, int(before) + 1, method, path, int(status)))
        return rows


@dataclass(frozen=True)
class Undici:
    """What gives Node 20's fetch a proxy: npm's `undici`, or the one that Debian's nodejs has."""

    modules: Path
    """for NODE_PATH"""
    tunnels_http: bool
    """Before 6.21 it uses CONNECT for http:// too, whatever it is told."""


def find_undici(home: Path) -> Undici:
    for modules in (_from_npm(home), Path("/usr/share/nodejs")):
        package = modules / "undici" / "package.json"
        if package.exists():
            version = tuple(map(int, json.loads(package.read_text())["version"].split(".")[:2]))
            return Undici(modules, tunnels_http=version < (6, 21))
    return missing("undici (npm install undici@6, or Debian's node-undici)")


def _from_npm(home: Path) -> Path:
    npm = shutil.which("npm")
    if npm is not None:
        args = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), "undici@6"]
        process = Process(args, home / "npm.log", home, dict(os.environ))
        try:
            process.exit_code(40)
        finally:
            process.stop()
    return home / "node_modules"
