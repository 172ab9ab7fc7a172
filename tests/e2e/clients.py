"""Real HTTP clients, each as its users start it: a process with the proxy in its environment.

A client is asked for one URL and what it prints must hold the origin's greeting. The Python and
Node ones are the scripts that the README shows, each with the switch that its library needs.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import missing, need
from tests.e2e.servers import Undici

REQUESTS = """
import sys, requests
print(requests.get(sys.argv[1], verify=sys.argv[2], timeout=20).text)
"""

URLLIB3 = """
import os, sys, urllib3
with urllib3.ProxyManager(os.environ["HTTP_PROXY"], ca_certs=sys.argv[2], retries=False) as proxy:
    print(proxy.request("GET", sys.argv[1], timeout=20).data.decode())
"""

HTTPX = """
import ssl, sys, httpx
context = ssl.create_default_context(cafile=sys.argv[2])
print(httpx.get(sys.argv[1], verify=context, timeout=20).text)
"""

AIOHTTP = """
import asyncio, ssl, sys, aiohttp
async def main():
    context = ssl.create_default_context(cafile=sys.argv[2])
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(sys.argv[1], ssl=context) as response:
            print(await response.text())
asyncio.run(main())
"""

# Node 20's own fetch knows no proxy: undici's dispatcher, set once, gives it one. Without
# proxyTunnel: false it would use CONNECT for http:// too.
NODE_FETCH = """
const { ProxyAgent, setGlobalDispatcher } = require('undici');
setGlobalDispatcher(new ProxyAgent({uri: process.env.HTTP_PROXY, proxyTunnel: false}));
fetch(process.argv[1]).then((response) => response.text()).then((text) => console.log(text));
"""

# Node's http module: the whole URL as path for http://, CONNECT by hand for https://.
NODE_HTTP = """
const http = require('http'), https = require('https');
const url = new URL(process.argv[1]), proxy = new URL(process.env.HTTP_PROXY);
const show = (response) => response.pipe(process.stdout, {end: false});
if (url.protocol === 'http:') {
  http.get({host: proxy.hostname, port: proxy.port, path: url.href, headers: {Host: url.host}},
           show);
} else {
  http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host})
    .on('connect', (response, socket) => {
      if (response.statusCode !== 200) throw new Error(`CONNECT: ${response.statusCode}`);
      https.get(url, {socket, agent: false}, (response) => {
        show(response);
        response.on('end', () => socket.end());
      });
    }).end();
}
"""


@dataclass(frozen=True)
class Job:
    """What a client is to fetch, and with what."""

    url: str
    proxy: str
    ca: Path
    spki: str
    """base64 of the SHA-256 of the origin's public key: what Chromium wants to trust"""
    home: Path
    undici: Callable[[], Undici]


@dataclass(frozen=True)
class Invocation:
    args: list[str]
    env: dict[str, str]


def _python(script: str, package: str) -> Callable[[Job], Invocation]:
    def invocation(job: Job) -> Invocation:
        try:
            __import__(package)
        except ImportError:
            missing(f"the Python package {package}")
        return Invocation([sys.executable, "-c", script, job.url, str(job.ca)], {})

    return invocation


def _curl(job: Job) -> Invocation:
    return Invocation([need("curl"), "-sS", "--fail", "--cacert", str(job.ca), job.url], {})


def _wget(job: Job) -> Invocation:
    options = ["-nv", "--tries=1", f"--ca-certificate={job.ca}", "-O", "-"]
    return Invocation([need("wget"), *options, job.url], {})


def _node_fetch(job: Job) -> Invocation:
    env = {"NODE_PATH": str(job.undici().modules), "NODE_EXTRA_CA_CERTS": str(job.ca)}
    return Invocation([need("node"), "-e", NODE_FETCH, job.url], env)


def _node_http(job: Job) -> Invocation:
    env = {"NODE_EXTRA_CA_CERTS": str(job.ca)}
    return Invocation([need("node"), "-e", NODE_HTTP, job.url], env)


def _chromium(job: Job) -> Invocation:
    flags = [
        f"--proxy-server={job.proxy}",
        # Left alone it would go to loopback addresses by itself; and what it asks its makers on
        # each start goes past the proxy to names that nothing resolves.
        "--proxy-bypass-list=<-loopback>;*.com",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--headless",
        "--no-sandbox",  # for root, in containers
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-extensions",
        "--disable-sync",
        "--disable-features=OptimizationHints,MediaRouter,Translate",
        f"--user-data-dir={job.home / 'profile'}",
        f"--ignore-certificate-errors-spki-list={job.spki}",
        "--dump-dom",
    ]
    return Invocation([need("chromium"), *flags, job.url], {"HOME": str(job.home)})


CLIENTS: dict[str, Callable[[Job], Invocation]] = {
    "curl": _curl,
    "wget": _wget,
    "requests": _python(REQUESTS, "requests"),
    "urllib3": _python(URLLIB3, "urllib3"),
    "httpx": _python(HTTPX, "httpx"),
    "aiohttp": _python(AIOHTTP, "aiohttp"),
    "node-fetch": _node_fetch,
    "node-http": _node_http,
    "chromium": _chromium,
}
