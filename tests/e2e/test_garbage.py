"""What a connection leaves is freed by reference counts alone: full garbage collections, which a
service has next to none of, find nothing."""

import contextlib
import json
import sys

import pytest

from tests.e2e.harness import eventually, free_port
from tests.e2e.tls_origins import Pki

WITHOUT_COLLECTOR = """
import gc, json, sys
from collections import Counter
from warmproxy.cli import main

gc.disable()
status = main(sys.argv[4:])  # behind python -m warmproxy
print(json.dumps({"event": "left", "by_type": Counter(type(o).__name__ for o in gc.get_objects())}))
sys.exit(status)
"""

GONE = (
    "ClientConnection",
    "Exchange",
    "HeadBuffer",
    "Lease",
    "Mover",
    "SSLProtocol",
    "TCPTransport",
    "UpstreamConnection",
    "_SSLProtocolTransport",
    "_Side",
)
LONG = 1 << 20


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.mark.parametrize("way", ["request", "new client", "down", "up", "tunnel", "tls", "refused"])
def test_nothing_is_left_of_connections(warmproxy, origin, pki, way) -> None:
    """Without a garbage collector, ten of a kind leave no object of ours and no transport."""
    web = origin(tls=pki.server() if way == "tls" else None)
    url = f"https://localhost:{web.port}" if way == "tls" else web.url
    warm = {"warm": 0, "tls": 2, "ca_file": str(pki.file)} if way == "tls" else {"warm": 2}
    inside = [sys.executable, "-c", WITHOUT_COLLECTOR]
    proxy = warmproxy(config={"upstream": [{"url": url, **warm}]}, inside=inside)
    for _ in range(10):
        match way:
            case "request" | "tls":
                assert proxy.fetch(f"{url}/close").status == 200
            case "new client":
                assert proxy.fetch(f"{url}/").status == 200
            case "down":
                assert len(proxy.fetch(f"{url}/bytes/{LONG}").body) == LONG
            case "up":
                assert proxy.fetch(f"{url}/echo", "PUT", bytes(LONG)).body == bytes(LONG)
            case "refused":
                assert proxy.fetch(f"http://127.0.0.1:{free_port()}/").status == 502
            case "tunnel":
                with contextlib.closing(proxy.tunnel(web.authority)) as sock:
                    ask = f"GET /bytes/{LONG} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                    sock.sendall(ask.encode())
                    size = 0
                    while data := sock.recv(1 << 18):
                        size += len(data)
                    assert size > LONG
    eventually(lambda: not proxy.count("warmproxy_clients"))
    assert proxy.terminate() == 0
    left = json.loads(proxy.log().splitlines()[-1])["by_type"]
    # the two that are warm at the end may still say goodbye, where TLS has a word for that
    closing = 2 if way == "tls" else 0
    assert {kind: left[kind] for kind in GONE if left.get(kind, 0) > closing} == {}
