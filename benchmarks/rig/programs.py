"""Real clients, each a fresh process that asks once through a proxy and tells when it did what.

They are started beforehand: what is timed is from before their connect() to the proxy to the first
byte of the answer, and until their own handshake was done, by their own clocks. Only curl, which
cannot wait, starts and asks in one; its stamps leave the start out.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rig import link, servers
from rig.client import Address, Answer

READY_WITHIN = ANSWERS_WITHIN = 30.0
SETTLES = 1.0  # s: a browser that answers is not done with its start

CURL = """{
"started": %{time_namelookup}, "shaken": %{time_appconnect}, "answered": %{time_starttransfer},
"connected": "%header{x-connected}", "secured": "%header{x-secured}"
}"""

# `first byte`: http.client has parsed the head, which is all in one packet
PYTHON = """
import http.client, json, socket, ssl, sys, time
import requests

at = {}

def watch(owner, name):
    act = getattr(owner, name)
    def watched(*args, **kwargs):
        before = time.monotonic()
        done = act(*args, **kwargs)
        at[name] = before, time.monotonic()
        return done
    setattr(owner, name, watched)

watch(socket.socket, "connect")
watch(ssl.SSLContext, "wrap_socket")
watch(http.client.HTTPResponse, "begin")

url, proxy, ca = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with requests.get(url, proxies={"https": proxy}, verify=ca, timeout=20, stream=True) as answer:
    answer.raise_for_status()
    print(json.dumps({
        "started": at["connect"][0], "shaken": at["wrap_socket"][1], "answered": at["begin"][1],
        "connected": answer.headers["x-connected"], "secured": answer.headers["x-secured"],
    }), flush=True)
"""

NODE = """
const http = require('http'), https = require('https');
const [url, proxy] = process.argv.slice(1).map((word) => new URL(word));
const at = {}, now = () => Number(process.hrtime.bigint()) / 1e9;
process.stdin.once('data', () => {
  at.started = now();
  http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host})
    .on('connect', (connected, socket) => {
      if (connected.statusCode !== 200) throw new Error(`CONNECT: ${connected.statusCode}`);
      https.get(url, {socket, agent: false}, (answer) => {
        at.answered = now();
        if (answer.statusCode !== 200) throw new Error(`${answer.statusCode}`);
        at.connected = answer.headers['x-connected'];
        at.secured = answer.headers['x-secured'];
        console.log(JSON.stringify(at));
        process.exit();
      }).on('socket', (tls) => tls.on('secureConnect', () => { at.shaken = now(); }));
    }).end();
});
console.log('ready');
"""

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",  # for root, in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    # what a browser asks its makers would be in the way
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--proxy-bypass-list=<-loopback>;*.com",
]


@dataclass(frozen=True)
class Trust:
    """Authorities, in the forms in which clients want them."""

    bundle: Path
    """PEM, one after the other."""
    home: Path
    """A user's folder with a certificate store, which is what Chromium takes them from."""


def trust(folder: Path, authorities: Sequence[Path]) -> Trust:
    """Without certutil the store stays empty."""
    bundle, store = folder / "trusted.pem", folder / ".pki/nssdb"
    bundle.write_bytes(b"".join(file.read_bytes() for file in authorities))
    store.mkdir(parents=True)
    if certutil := shutil.which("certutil"):
        command = [certutil, "-d", f"sql:{store}"]
        subprocess.run([*command, "-N", "--empty-password"], check=True)
        for number, file in enumerate(authorities):
            add = ["-A", "-t", "C,,", "-n", f"ca{number}", "-i", str(file)]
            subprocess.run([*command, *add], check=True)
    return Trust(bundle, folder)


class Program:
    """One of them, from its start to its end. Use it as a context manager, and `run` once."""

    needs = ""

    def __init__(self, trust: Trust, python: str, origin: Address, proxy: Address) -> None:
        self.trust = trust
        self.python = python
        self.url = "https://{}:{}/".format(*origin)
        self.proxy = "http://{}:{}".format(*proxy)

    @classmethod
    def version(cls, python: str) -> str:
        """`curl 7.88.1`; empty where something that it needs is not installed."""
        return servers.version(cls.needs, python)

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True)
        self.said = tempfile.TemporaryFile()
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        bundle = str(self.trust.bundle)
        self.process = link.spawn(
            self.command(),
            min(os.sched_getaffinity(0)),  # beside us
            link.PROGRAM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            cwd=self.folder.name,
            env={**kept, "HOME": str(self.trust.home), "NODE_EXTRA_CA_CERTS": bundle},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.from_ = self.process.stdin, self.process.stdout
        self.received = b""
        try:
            self.get_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        link.reap(self.process)
        self.to.close()
        self.from_.close()
        self.said.close()
        self.folder.cleanup()

    def run(self) -> list[Answer]:
        """Have it ask."""
        began = time.monotonic()
        try:
            return [self.ask()]
        except (OSError, ValueError, LookupError) as error:
            self.said.seek(0)
            told = self.said.read()[-300:].decode(errors="replace").strip()
            return [Answer(began, time.monotonic() - began, error=f"{error!r} {told}")]

    # what a program has to say

    def command(self) -> list[str]:
        raise NotImplementedError

    def get_ready(self) -> None:
        """Until it waits for our word."""

    def ask(self) -> Answer:
        """Give it, and hear what came of it. Raises OSError, ValueError, LookupError."""
        raise NotImplementedError

    # what they share

    def tell(self, data: bytes) -> None:
        self.to.write(data)
        self.to.flush()

    def hear(self, end: bytes, within: float) -> bytes:
        """What it writes up to that; with b"" all that it writes. Raises OSError."""
        give_up = time.monotonic() + within
        while not end or end not in self.received:
            if not select.select([self.from_], [], [], max(0, give_up - time.monotonic()))[0]:
                raise OSError(f"it said nothing within {within:g} s")
            data = os.read(self.from_.fileno(), 65536)
            if not data and end:
                raise OSError("it ended without an answer")
            if not data:
                return self.received
            self.received += data
        said, _, self.received = self.received.partition(end)
        return said


def answer_of(told: Mapping[str, float | str], since: float = 0.0) -> Answer:
    """Of a program's stamps, in seconds after `since` by CLOCK_MONOTONIC. Raises LookupError,
    ValueError."""
    started = float(told["started"])
    return Answer(
        since + started,
        float(told["answered"]) - started,
        shaken=float(told["shaken"]) - started,
        connected=float(told["connected"]),
        secured=float(told["secured"]),
    )


class Curl(Program):
    needs = "curl"

    def command(self) -> list[str]:
        trusted = ["--cacert", str(self.trust.bundle), "--proxy", self.proxy, "--noproxy", ""]
        told = ["--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out", CURL]
        return ["curl", "--config", "-", *told, *trusted, self.url]

    def ask(self) -> Answer:
        since = time.monotonic()
        self.to.close()
        return answer_of(json.loads(self.hear(b"", ANSWERS_WITHIN)), since)


class Scripted(Program):
    """Says that it is ready, is told so, and tells its stamps, each in a line."""

    def get_ready(self) -> None:
        self.hear(b"\n", READY_WITHIN)

    def ask(self) -> Answer:
        self.tell(b"\n")
        return answer_of(json.loads(self.hear(b"\n", ANSWERS_WITHIN)))


class Requests(Scripted):
    needs = "python:requests"

    def command(self) -> list[str]:
        return [self.python, "-c", PYTHON, self.url, self.proxy, str(self.trust.bundle)]


class Node(Scripted):
    needs = "node"

    def command(self) -> list[str]:
        return ["node", "-e", NODE, self.url, self.proxy]


class Chromium(Program):
    """By the DevTools protocol, on a pipe."""

    needs = "chromium"

    @classmethod
    def version(cls, python: str) -> str:
        return super().version(python) if shutil.which("certutil") else ""

    def command(self) -> list[str]:
        own = [f"--user-data-dir={self.folder.name}/profile", f"--proxy-server={self.proxy}"]
        browser = ["chromium", *CHROMIUM_FLAGS, *own, "--remote-debugging-pipe", "about:blank"]
        return ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >&2', "sh", *browser]

    def get_ready(self) -> None:
        self.number = 0
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.call("Network.enable")
        time.sleep(SETTLES)

    def ask(self) -> Answer:
        self.send("Page.navigate", url=self.url)
        while True:
            event = self.next_message()
            if event.get("method") == "Network.loadingFailed":
                raise OSError(event["params"]["errorText"])
            if event.get("method") == "Network.responseReceived":
                return answer_of(stamps_of(event["params"]["response"]))

    def send(self, method: str, **params: object) -> None:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.tell(json.dumps(message).encode() + b"\0")

    def call(self, method: str, **params: object) -> dict:
        self.send(method, **params)
        while (message := self.next_message()).get("id") != self.number:
            pass
        return message["result"]

    def next_message(self) -> dict:
        return json.loads(self.hear(b"\0", ANSWERS_WITHIN))


def stamps_of(response: dict) -> dict[str, float | str]:
    """Of DevTools' Network.Response: its times are in ms after `requestTime`, which is in seconds
    by CLOCK_MONOTONIC. Raises LookupError, OSError."""
    if response["status"] != 200:
        raise OSError(f"status {response['status']}")
    timing = response["timing"]
    fields = {name.lower(): value for name, value in response["headers"].items()}

    def at(name: str) -> float:
        return timing["requestTime"] + timing[name] / 1000

    return {
        "started": at("connectStart"),
        "shaken": at("sslEnd"),
        "answered": at("receiveHeadersStart"),
        "connected": fields["x-connected"],
        "secured": fields["x-secured"],
    }


PROGRAMS: Mapping[str, type[Program]] = {
    "curl": Curl,
    "requests": Requests,
    "Node": Node,
    "Chromium": Chromium,
}
