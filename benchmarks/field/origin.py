"""The origin that all proxies are measured in front of: nginx, which is faster than any of them."""

import os
import shutil
import socket
import time
from pathlib import Path

from field.running import Failed, Program, free_port, raise_descriptor_limit

MIB = 2**20
SLOW = 2.0
"""Seconds, roughly, that an answer to /slow takes."""

_NGINX = """
daemon off; {user}
pid {home}/pid; error_log {home}/error.log crit;
worker_processes 1; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; multi_accept on; }}
http {{
  access_log off; sendfile on; tcp_nopush on; open_file_cache max=10;
  client_body_temp_path {home}/t; proxy_temp_path {home}/t; fastcgi_temp_path {home}/t;
  uwsgi_temp_path {home}/t; scgi_temp_path {home}/t;
  keepalive_timeout 1h; client_header_timeout 1h; keepalive_requests 1000000000;
  server {{
    {listen}
    {tls}
    root {home};
    location = /small {{ return 200 "{small}"; }}
    location = /slow {{ limit_rate 512; return 200 "{slow}"; }}
  }}
}}
"""

_TLS = """
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {home}/crt; ssl_certificate_key {home}/key; ssl_protocols TLSv1.3;
"""


class Origin:
    """nginx on loopback: /small has 512 bytes, /1m and /100m what they say, /slow takes a while.

    `addresses`: 127.0.0.x to listen at, on one port: each makes origins of its own, and has the
    clients' ports for itself. `tls`: a port that speaks TLS 1.3 too; needs trustme.
    Raises Failed.
    """

    def __init__(
        self,
        home: Path,
        *,
        core: int | None = None,
        ports: int = 1,
        addresses: int = 1,
        tls: bool = False,
    ) -> None:
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if program is None:
            raise Failed("nginx is needed as the origin, and is not installed")
        home.chmod(0o755)
        (home / "t").mkdir()
        for name, size in (("1m", MIB), ("100m", 100 * MIB)):
            with (home / name).open("wb") as file:
                for _ in range(size // MIB):
                    file.write(bytes(MIB))
        self.ports = [free_port() for _ in range(ports)]
        self.addresses = [f"127.0.0.{number}" for number in range(1, addresses + 1)]
        self.tls_port = 0
        extra = ""
        if tls:
            self.tls_port = free_port()
            extra = _TLS.format(home=home, port=self.tls_port)
            self.ca = _certificate(home)
        files = min(raise_descriptor_limit(), 65536)
        (home / "conf").write_text(
            _NGINX.format(
                home=home,
                user="user root;" if os.geteuid() == 0 else "",
                files=files,
                connections=files - 100,
                listen="\n    ".join(
                    f"listen {address}:{port} backlog=4096;"
                    for address in self.addresses
                    for port in self.ports
                ),
                tls=extra,
                small="x" * 512,
                slow="x" * 512 * int(SLOW),
            )
        )
        command = [
            program,
            "-p",
            str(home),
            "-c",
            str(home / "conf"),
            "-e",
            str(home / "error.log"),
        ]
        self.program = Program(command, home, core=core)
        give_up = time.monotonic() + 10
        while not accepts(self.ports[-1]):
            if not self.program.runs or time.monotonic() > give_up:
                raise Failed(f"the origin does not come up: {self.program.said()}")
            time.sleep(0.01)

    @property
    def port(self) -> int:
        return self.ports[0]

    def stop(self) -> None:
        self.program.stop()


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _certificate(home: Path) -> Path:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(home / "ca"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(home / "key"))
    issued.cert_chain_pems[0].write_to_path(str(home / "crt"))
    return home / "ca"
