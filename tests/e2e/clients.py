"""Real HTTP clients, each as its users start it: a process with the proxy in its environment.

A client is asked for URLs, one after the other, and what it prints must hold the origin's greeting
for each. Without a proxy the URLs are a gateway's. The Python and Node ones are the scripts that
the README shows, each with the switch that its library needs.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.harness import missing, need
from tests.e2e.servers import Undici

REQUESTS = """
import sys, requests
with requests.Session() as session:
    for url in sys.argv[2:]:
        print(session.get(url, verify=sys.argv[1], timeout=20).text)
"""

URLLIB3 = """
import os, sys, urllib3
proxy = os.environ.get("HTTP_PROXY")
manager = urllib3.ProxyManager(proxy, ca_certs=sys.argv[1]) if proxy else urllib3.PoolManager()
with manager:
    for url in sys.argv[2:]:
        print(manager.request("GET", url, timeout=20, retries=False).data.decode())
"""

HTTPX = """
import ssl, sys, httpx
context = ssl.create_default_context(cafile=sys.argv[1])
with httpx.Client(verify=context, timeout=20) as client:
    for url in sys.argv[2:]:
        print(client.get(url).text)
"""

AIOHTTP = """
import asyncio, ssl, sys, aiohttp
async def main():
    context = ssl.create_default_context(cafile=sys.argv[1])
    async with aiohttp.ClientSession(trust_env=True) as session:
        for url in sys.argv[2:]:
            async with session.get(url, ssl=context) as response:
                print(await response.text())
asyncio.run(main())
"""

# Node 20's own fetch knows no proxy: undici's dispatcher, set once, gives it one. Without
# proxyTunnel: false it would use CONNECT for http:// too.
NODE_FETCH = """
const uri = process.env.HTTP_PROXY;
if (uri) {
  const { ProxyAgent, setGlobalDispatcher } = require('undici');
  setGlobalDispatcher(new ProxyAgent({uri, proxyTunnel: false}));
}
(async () => {
  for (const url of process.argv.slice(1)) console.log(await (await fetch(url)).text());
})();
"""

# Node's http module: the whole URL as path for http://, CONNECT by hand for https://.
NODE_HTTP = """
const http = require('http'), https = require('https');
const proxy = process.env.HTTP_PROXY && new URL(process.env.HTTP_PROXY);
const [first, ...more] = process.argv.slice(1).map((url) => new URL(url));
const show = (response) => {
  response.pipe(process.stdout, {end: false});
  if (more.length) response.on('end', () => http.get(more.shift(), show));
};
if (!proxy) {
  http.get(first, show);
} else if (first.protocol === 'http:' || process.env.FORWARD) {
  http.get({host: proxy.hostname, port: proxy.port, path: first.href,
            headers: {Host: first.host}}, show);
} else {
  http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: first.host})
    .on('connect', (response, socket) => {
      if (response.statusCode !== 200) throw new Error(`CONNECT: ${response.statusCode}`);
      https.get(first, {socket, agent: false}, (response) => {
        show(response);
        response.on('end', () => socket.end());
      });
    }).end();
}
"""

# Whatever http.client is given as a URL goes on the wire as it is.
HTTP_CLIENT = """
import http.client, os, sys
from urllib.parse import urlsplit
proxy = http.client.HTTPConnection(urlsplit(os.environ["HTTP_PROXY"]).netloc, timeout=20)
for url in sys.argv[1:]:
    proxy.request("GET", url)
    print(proxy.getresponse().read().decode())
proxy.close()
"""

# Both of Java's clients, and HttpURLConnection with a URL whose "file" is the whole URL to forward.
JAVA = """
import java.io.*;
import java.net.*;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

class Get {
    static void show(URL url) throws Exception {
        try (InputStream in = url.openConnection().getInputStream()) {
            System.out.println(new String(in.readAllBytes()));
        }
    }

    static void trust(String file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (InputStream in = new FileInputStream(file)) {
            store.setCertificateEntry(
                "ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance("PKIX");
        factory.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, factory.getTrustManagers(), null);
        SSLContext.setDefault(context);
    }

    public static void main(String[] args) throws Exception {
        trust(args[1]);
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 2; i < args.length; i++) {
            if (args[0].equals("HttpClient")) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(args[i])).build();
                System.out.println(
                    client.send(request, HttpResponse.BodyHandlers.ofString()).body());
            } else if (args[0].equals("HttpURLConnection")) {
                show(new URL(args[i]));
            } else {  // the proxy's host and port
                String[] proxy = args[0].split(":");
                show(new URL("http", proxy[0], Integer.parseInt(proxy[1]), args[i]));
            }
        }
    }
}
"""


@dataclass(frozen=True)
class Job:
    """What a client is to fetch, and with what."""

    urls: tuple[str, ...]
    proxy: str | None
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
        return Invocation([sys.executable, "-c", script, str(job.ca), *job.urls], {})

    return invocation


def _curl(job: Job) -> Invocation:
    return Invocation([need("curl"), "-sS", "--fail", "--cacert", str(job.ca), *job.urls], {})


def _wget(job: Job) -> Invocation:
    options = ["-nv", "--tries=1", f"--ca-certificate={job.ca}", "-O", "-"]
    return Invocation([need("wget"), *options, *job.urls], {})


def _node_fetch(job: Job) -> Invocation:
    env = {"NODE_EXTRA_CA_CERTS": str(job.ca)}
    if job.proxy is not None:
        env["NODE_PATH"] = str(job.undici().modules)
    return Invocation([need("node"), "-e", NODE_FETCH, *job.urls], env)


def _node_http(job: Job) -> Invocation:
    env = {"NODE_EXTRA_CA_CERTS": str(job.ca)}
    return Invocation([need("node"), "-e", NODE_HTTP, *job.urls], env)


def _java(job: Job, how: str, *options: str) -> Invocation:
    need("javac")  # a source file is compiled as it is started
    file = job.home / "Get.java"
    file.write_text(JAVA)
    quick = "-XX:TieredStopAtLevel=1"
    return Invocation([need("java"), quick, *options, str(file), how, str(job.ca), *job.urls], {})


def _java_client(how: str) -> Callable[[Job], Invocation]:
    def invocation(job: Job) -> Invocation:
        options = []
        if job.proxy is not None:
            proxy = urlsplit(job.proxy)
            for scheme in ("http", "https"):
                options.append(f"-D{scheme}.proxyHost={proxy.hostname}")
                options.append(f"-D{scheme}.proxyPort={proxy.port}")
            options.append("-Dhttp.nonProxyHosts=")  # left alone it goes to loopback by itself
        return _java(job, how, *options)

    return invocation


def chromium(home: Path, proxy: str | None, *flags: str) -> list[str]:
    """The command of a browser that asks for nothing by itself."""
    return [
        need("chromium"),
        f"--proxy-server={proxy or 'direct://'}",
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
        f"--user-data-dir={home / 'profile'}",
        *flags,
    ]


def _chromium(job: Job) -> Invocation:
    trusted = f"--ignore-certificate-errors-spki-list={job.spki}"
    command = chromium(job.home, job.proxy, trusted, "--dump-dom")
    return Invocation([*command, *job.urls], {"HOME": str(job.home)})


CLIENTS: dict[str, Callable[[Job], Invocation]] = {
    "curl": _curl,
    "wget": _wget,
    "requests": _python(REQUESTS, "requests"),
    "urllib3": _python(URLLIB3, "urllib3"),
    "httpx": _python(HTTPX, "httpx"),
    "aiohttp": _python(AIOHTTP, "aiohttp"),
    "node-fetch": _node_fetch,
    "node-http": _node_http,
    "java-httpclient": _java_client("HttpClient"),
    "java-httpurlconnection": _java_client("HttpURLConnection"),
    "chromium": _chromium,
}


# -- the whole https:// URL to the proxy --------------------------------------------------------


def _curl_forwards(job: Job) -> Invocation:
    """The proxy is the server here, and what is asked of it is the whole URL."""
    [url] = job.urls
    args = ["-sS", "--fail", "--noproxy", "*", "--request-target", url, f"{job.proxy}/"]
    return Invocation([need("curl"), *args], {})


def _http_client_forwards(job: Job) -> Invocation:
    return Invocation([sys.executable, "-c", HTTP_CLIENT, *job.urls], {})


def _node_http_forwards(job: Job) -> Invocation:
    return Invocation([need("node"), "-e", NODE_HTTP, *job.urls], {"FORWARD": "1"})


def _java_forwards(job: Job) -> Invocation:
    assert job.proxy is not None
    return _java(job, urlsplit(job.proxy).netloc)


FORWARDING: dict[str, Callable[[Job], Invocation]] = {
    "curl": _curl_forwards,
    "http.client": _http_client_forwards,
    "node-http": _node_http_forwards,
    "java-httpurlconnection": _java_forwards,
}
"""Clients that can be made to; those with an adapter are in test_adapters.py."""
