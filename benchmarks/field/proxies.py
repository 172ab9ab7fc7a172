"""Which proxies there are, and how each is set up for the same task.

One process and one thread where it can be had, connections kept on both sides, no cache and no
access log: what a forward proxy has to do and nothing else. HAProxy and nginx have no forward
mode; they route requests in absolute-form to the one origin that they are told. Each file below
is all that the peer is given.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
WORK = Path(os.environ.get("WARMPROXY_BENCH", BENCHMARKS / ".work")).absolute()
"""Where setup.sh puts what it installs beside the system."""

_BESIDE = (WORK / "venv/bin", WORK / "squid-openssl/usr/sbin")
_PATH = ":".join([*map(str, _BESIDE), os.environ.get("PATH", ""), "/usr/sbin:/usr/local/sbin"])


@dataclass(frozen=True)
class Place:
    """Where one proxy runs."""

    home: Path
    port: int
    origin: int
    """The origin's port, on loopback."""
    warm: int = 0
    """Connections to hold open to the origin; only ours can."""
    settings: str = ""
    """Ours only: the text of a settings file."""

    def write(self, name: str, text: str) -> str:
        file = self.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for word, value in (("HOME", self.home), ("ORIGIN", self.origin), ("PORT", self.port)):
            text = text.replace(f"@{word}@", str(value))
        file.write_text(text)
        return str(file)


Command = Callable[[str, Place], list[str]]


@dataclass(frozen=True)
class Kind:
    """A proxy and how it is started, in the foreground; `command` writes its settings."""

    name: str
    program: str
    command: Command
    tunnels: bool = True
    ours: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    version: tuple[str, ...] = ("--version",)

    def found(self) -> str:
        """The program's path, or ""."""
        return shutil.which(self.program, path=_PATH) or ""

    def start_command(self, place: Place) -> list[str]:
        return self.command(self.found(), place)

    def told_version(self) -> str:
        asked = subprocess.run(
            [self.found(), *self.version],
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
        )
        for word in (asked.stdout + asked.stderr).replace("/", " ").replace("(", " ").split():
            if word[:1].isdigit() and "." in word:
                return word.split("-")[0]
        return "?"


def ours(name: str, tree: Path, python: str) -> Kind:
    """warmproxy from this tree, as it is by default."""

    def command(program: str, at: Place) -> list[str]:
        line = [program, "-m", "warmproxy", "run", "--listen", f"127.0.0.1:{at.port}"]
        line += ["--admin", f"127.0.0.1:{admin_port(at)}"]
        if at.warm:
            line += ["--warm", f"http://127.0.0.1:{at.origin}={at.warm}"]
        if at.settings:
            line += ["--config", at.write("warmproxy.toml", at.settings)]
        return line

    environment = {"PYTHONPATH": str(tree), "WARMPROXY_STATE_FILE": ""}
    asks = ("-m", "warmproxy", "--version")
    return Kind(name, python, command, ours=True, environment=environment, version=asks)


def admin_port(at: Place) -> int:
    """Of ours: the port after the one it listens at."""
    return at.port + 1


_HAPROXY = """
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 30m
  timeout server 60s
  timeout http-keep-alive 30m
  http-reuse always
  retries 3
  retry-on conn-failure empty-response
frontend in
  bind 127.0.0.1:@PORT@
  http-request set-uri %[pathq]
  http-request disable-l7-retry if !{ method GET HEAD }
  default_backend origin
backend origin
  server one 127.0.0.1:@ORIGIN@ pool-max-conn 2000 pool-purge-delay 30m
"""

_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid @HOME@/pid;
error_log @HOME@/error.log;
events { worker_connections 8000; }
http {
  access_log off;
  client_body_temp_path @HOME@/t; proxy_temp_path @HOME@/t; fastcgi_temp_path @HOME@/t;
  uwsgi_temp_path @HOME@/t; scgi_temp_path @HOME@/t;
  keepalive_timeout 30m; keepalive_requests 1000000000;
  upstream origin {
    server 127.0.0.1:@ORIGIN@;
    keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 10m;
  }
  server {
    listen 127.0.0.1:@PORT@;
    location / {
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_max_temp_file_size 0;
      proxy_buffers 32 16k;
    }
  }
}
"""

_SQUID = """
http_port 127.0.0.1:@PORT@
http_access allow all
cache deny all
cache_mem 0 MB
access_log none
cache_log @HOME@/cache.log
cache_store_log none
pid_filename none
coredump_dir @HOME@
client_persistent_connections on
server_persistent_connections on
pconn_timeout 10 minutes
client_idle_pconn_timeout 30 minutes
forwarded_for delete
via off
max_filedescriptors 16384
shutdown_lifetime 0 seconds
pinger_enable off
"""

_TINYPROXY = """
Port @PORT@
Listen 127.0.0.1
Timeout 1800
MaxClients 4000
LogLevel Critical
LogFile "@HOME@/log"
Allow 127.0.0.1
DisableViaHeader Yes
"""

_ENVOY = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: @PORT@}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: HTTP1
          http_protocol_options: {allow_absolute_url: true}
          common_http_protocol_options: {idle_timeout: 3600s}
          generate_request_id: false
          stream_idle_timeout: 0s
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: origin, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
              - match: {prefix: "/", headers: [{name: ":method", string_match: {exact: GET}}]}
                route: {cluster: origin, timeout: 0s, retry_policy: {retry_on: "reset,connect-failure", num_retries: 3}}
              - match: {prefix: "/"}
                route: {cluster: origin, timeout: 0s, retry_policy: {retry_on: connect-failure, num_retries: 3}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}
  clusters:
  - name: origin
    type: STATIC
    connect_timeout: 5s
    preconnect_policy: {per_upstream_preconnect_ratio: 3.0, predictive_preconnect_ratio: 3.0}
    circuit_breakers: {thresholds: [{max_connections: 8000, max_requests: 8000, max_pending_requests: 8000, max_retries: 1000}]}
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @ORIGIN@}}}}]}]}
"""  # noqa: E501 - names and pairs that cannot be broken

_TRAFFICSERVER = """
CONFIG proxy.config.http.server_ports STRING @PORT@:ip-in=127.0.0.1
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.task_threads INT 1
CONFIG proxy.config.reverse_proxy.enabled INT 1
CONFIG proxy.config.url_remap.remap_required INT 0
CONFIG proxy.config.http.cache.http INT 0
CONFIG proxy.config.http.keep_alive_enabled_in INT 1
CONFIG proxy.config.http.keep_alive_enabled_out INT 1
CONFIG proxy.config.http.keep_alive_no_activity_timeout_in INT 1800
CONFIG proxy.config.http.keep_alive_no_activity_timeout_out INT 600
CONFIG proxy.config.http.server_session_sharing.match STRING both
CONFIG proxy.config.http.server_session_sharing.pool STRING global
CONFIG proxy.config.http.connect_ports STRING @ORIGIN@
CONFIG proxy.config.http.insert_request_via_str INT 0
CONFIG proxy.config.http.insert_response_via_str INT 0
CONFIG proxy.config.hostdb.host_file.path STRING /etc/hosts
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.diags.logfile_perm STRING rw-r--r--
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.net.connections_throttle INT 16000
"""

_RUNROOT = """
prefix: @HOME@
exec_prefix: /usr
bindir: /usr/bin
sbindir: /usr/sbin
sysconfdir: @HOME@/etc
datadir: /usr/share/trafficserver
includedir: /usr/include
libdir: /usr/lib
libexecdir: /usr/lib/trafficserver/modules
localstatedir: @HOME@/run
runtimedir: @HOME@/run
logdir: @HOME@/log
mandir: /usr/share/man
infodir: /usr/share/info
cachedir: @HOME@/cache
"""


def _haproxy(program: str, at: Place) -> list[str]:
    return [program, "-db", "-f", at.write("conf", _HAPROXY)]


def _nginx(program: str, at: Place) -> list[str]:
    (at.home / "t").mkdir()
    return [program, "-p", str(at.home), "-c", at.write("conf", _NGINX), "-e", "stderr"]


def _squid(program: str, at: Place) -> list[str]:
    return [program, "-N", "-f", at.write("conf", _SQUID)]


def _tinyproxy(program: str, at: Place) -> list[str]:
    return [program, "-d", "-c", at.write("conf", _TINYPROXY)]


def _envoy(program: str, at: Place) -> list[str]:
    line = [program, "-c", at.write("envoy.yaml", _ENVOY), "--concurrency", "1"]
    return [*line, "--disable-hot-restart", "-l", "warn"]


def _trafficserver(program: str, at: Place) -> list[str]:
    shutil.copytree("/etc/trafficserver", at.home / "etc")
    for folder in ("log", "run", "cache"):
        (at.home / folder).mkdir(mode=0o777)
    at.write("etc/records.config", _TRAFFICSERVER)
    at.write("etc/remap.config", "")
    at.write("etc/storage.config", "")
    allow = "{apply: in, ip_addrs: 0/0, action: allow, methods: ALL}"
    at.write("etc/ip_allow.yaml", f"ip_allow:\n  - {allow}\n")
    return [program, "--run-root=" + at.write("runroot.yaml", _RUNROOT)]


def _proxy_py(program: str, at: Place) -> list[str]:
    line = [program, "--hostname", "127.0.0.1", "--port", str(at.port), "--num-workers", "1"]
    line += ["--num-acceptors", "1", "--threadless", "--enable-conn-pool", "--timeout", "1800"]
    return [*line, "--log-level", "CRITICAL", "--data-dir", str(at.home / "data")]


def _mitmproxy(program: str, at: Place) -> list[str]:
    line = [program, "-q", "--mode", f"regular@127.0.0.1:{at.port}"]
    for setting in (
        *(f"confdir={at.home}/mitm", "flow_detail=0", "connection_strategy=lazy"),
        *("stream_large_bodies=64k", "termlog_verbosity=error"),
    ):
        line += ["--set", setting]
    return [*line, "--ignore-hosts", f"^127[.]0[.]0[.]1:{at.origin}$"]


PEERS = (
    Kind("haproxy", "haproxy", _haproxy, tunnels=False, version=("-v",)),
    Kind("nginx", "nginx", _nginx, tunnels=False, version=("-v",)),
    Kind("envoy", "envoy", _envoy),
    Kind("squid", "squid", _squid),
    Kind("trafficserver", "traffic_server", _trafficserver, version=("-V",)),
    Kind("tinyproxy", "tinyproxy", _tinyproxy, version=("-v",)),
    Kind("proxy.py", "proxy", _proxy_py),
    Kind("mitmproxy", "mitmdump", _mitmproxy),
)
