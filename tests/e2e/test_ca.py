"""`warmproxy ca` and what `warmproxy exec` makes its command trust, with real clients.

What `trust-help` prints is run as it stands, line by line, and its undoing too. The server that the
clients ask has a certificate that our authority made; no proxy is between.
"""

import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.e2e.clients import chromium
from tests.e2e.daemon import toml, warmproxy_environ
from tests.e2e.harness import free_port, need
from tests.e2e.tls_origins import Pki
from warmproxy.cli import TRUST_HELP
from warmproxy.net.authority import Authority, create, prepare
from warmproxy.tools.trust import FALLS_BACK, HELP, JAVA, NODE

VARIABLES = (*FALLS_BACK, NODE, JAVA, "SSL_CERT_DIR")


class Owner:
    """Somebody with a home, settings that intercept `hosts`, and a shell."""

    def __init__(self, home: Path, *hosts: str, **more: Any) -> None:
        self.home = home
        self.folder = home / "state of mine" / "ca"
        self.file = home / "warmproxy.toml"
        self.intercept(*hosts, **more)
        tools = home / "bin"
        tools.mkdir()
        program = tools / "warmproxy"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m warmproxy "$@"\n')
        program.chmod(0o755)
        self.environ = warmproxy_environ(
            HOME=str(home),
            PATH=f"{tools}:{os.environ['PATH']}:/usr/sbin",
            WARMPROXY_CONFIG=str(self.file),
        )
        for name in VARIABLES:
            self.environ.pop(name, None)

    def intercept(self, *hosts: str, **more: Any) -> None:
        upstream = [{"url": f"https://{host}", "intercept": True, **more} for host in hosts]
        settings = {"ca_dir": str(self.folder), "listen": ["127.0.0.1:0"], "upstream": upstream}
        self.file.write_text(toml(settings))

    def shell(self, script: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a script; stdout and stderr apart."""
        return subprocess.run(
            ["sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.home,
            env=self.environ | env,
        )

    def ca(self, words: str) -> tuple[int, str, str]:
        ran = self.shell(f"warmproxy ca {words}")
        return ran.returncode, ran.stdout, ran.stderr

    def serves(self, host: str, name: str = "authority.pem") -> ssl.SSLContext:
        """For a server that has our certificate for a host, of the authority in this file."""
        with tempfile.TemporaryDirectory() as place:
            shutil.copy2(self.folder / name, Path(place) / "authority.pem")
            authority = Authority.load(Path(place))
        leaf = self.home / "leaf.pem"
        leaf.write_bytes(authority.leaf(host, time.time()).pem)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(leaf)
        return context


@pytest.fixture
def owner(home: Callable[[str], Path]) -> Callable[..., Owner]:
    return lambda *hosts, **more: Owner(home("owner"), *hosts, **more)


# -- the commands -------------------------------------------------------------------------------

DAY = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
PRINT = "[0-9A-F]{2}(:[0-9A-F]{2}){31}"


def matches(pattern: str, text: str) -> bool:
    """Line by line, with DAY and PRINT for what differs each time."""
    lines = [re.escape(line) for line in pattern.splitlines()]
    expected = "\n".join(lines).replace("DAY", DAY).replace("PRINT", PRINT)
    assert re.fullmatch(expected + "\n", text), text
    return True


def test_from_the_first_to_the_next(owner) -> None:
    """What each command says, and that no word of the key is in it."""
    me = owner("api.example.com:8443", "10.0.0.7")
    said = [me.ca("init"), me.ca("init"), me.ca("show")]
    assert (said[0][0], said[0][2]) == (0, "")
    assert matches(
        f"made the CA in {me.folder}\n"
        "  speaks for     10.0.0.7, api.example.com\n"
        "  until          DAY\n"
        "  SHA-256        PRINT\n"
        "Its key is in authority.pem. Whoever has it can pose as these hosts, and no other.\n"
        "Next: warmproxy ca trust-help says how clients come to trust it.",
        said[0][1],
    )
    assert said[1] == (
        1,
        "",
        f"warmproxy: there is a CA in {me.folder} already, and it stays: warmproxy ca rotate "
        "replaces it\n",
    )
    assert said[2][0] == 0
    assert matches(
        f"the CA in {me.folder}\n"
        "  speaks for     10.0.0.7, api.example.com\n"
        "  until          DAY\n"
        "  SHA-256        PRINT\n"
        "It covers all hosts that the settings intercept.",
        said[2][1],
    )
    first = Authority.load(me.folder)

    me.intercept("api.example.com:8443", "other.example")
    said += [me.ca("show"), me.ca("rotate --prepare --days 30"), me.ca("show")]
    assert said[3][0] == said[5][0] == 1
    assert said[3][1].endswith(
        "It does not cover other.example: warmproxy ca rotate makes one that does.\n"
        "Not intercepted any more: 10.0.0.7; warmproxy ca rotate leaves them out.\n"
    )
    assert said[4][0] == 0
    assert matches(
        f"prepared the next CA in {me.folder}; it does not sign yet\n"
        "  speaks for     api.example.com, other.example\n"
        "  until          DAY\n"
        "  SHA-256        PRINT\n"
        "Next: let clients learn it (warmproxy ca trust-help); then warmproxy ca rotate.",
        said[4][1],
    )
    assert re.search(
        f"  prepared       {PRINT}\n {{17}}for api.example.com, other.example until {DAY}\n",
        said[5][1],
    )

    said += [me.ca("rotate"), me.ca("show"), me.ca("rotate --retire"), me.ca("show")]
    assert [code for code, _, _ in said[6:]] == [0, 0, 0, 0]
    assert matches(
        f"another CA signs in {me.folder}\n"
        "  speaks for     api.example.com, other.example\n"
        "  until          DAY\n"
        "  SHA-256        PRINT\n"
        "What signed until now stays in trust.pem until it expires.\n"
        "Next: SIGHUP has a warmproxy that runs take it; clients with a copy need it again.",
        said[6][1],
    )
    assert f"  trusted too    {first.fingerprint}\n" in said[7][1]
    assert said[8][1].splitlines()[-2] == (
        "What was before is not in trust.pem any more: take it out of clients too."
    )
    assert "trusted too" not in said[9][1]

    said += [me.ca(f"export {form}") for form in ("", "--with-system")]
    key = (me.folder / "authority.pem").read_text().partition("-----END PRIVATE")[0].split("\n")[1]
    assert not any(key in out + err or "PRIVATE" in out + err for _, out, err in said)


@pytest.mark.parametrize("action", ["init", "rotate"])
def test_nothing_is_intercepted(owner, action) -> None:
    me = owner()
    assert me.ca(action) == (
        2,
        "",
        "no [[upstream]] is intercepted, so there is nothing for a CA to speak for; below the url "
        "of one, say\nintercept = true\nwarmproxy: 1 problem in the settings\n",
    )
    assert not me.folder.exists()


@pytest.mark.parametrize("words", ["show", "rotate", "rotate --prepare", "export", "trust-help"])
def test_there_is_none(owner, words) -> None:
    me = owner("api.example.com")
    said = f"warmproxy: no CA in {me.folder}: make one with warmproxy ca init\n"
    assert me.ca(words) == (1, "", said)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "warmproxy ca: the following arguments are required: ACTION"),
        ("inti", "warmproxy ca: unknown action 'inti'; did you mean 'init'?"),
        ("show --der", "warmproxy ca show: unknown option '--der'"),
        ("init --days 0", "warmproxy ca init: argument --days: must be from 1 to 397, not '0'"),
        ("rotate --prepare --retire", "argument --retire: not allowed with argument --prepare"),
        ("export --split", "warmproxy ca export: --split needs a folder"),
        ("trust-help nod", "warmproxy ca trust-help: unknown client 'nod'; did you mean 'node'?"),
    ],
)
def test_wrong_usage(owner, words, says) -> None:
    code, out, err = owner("api.example.com").ca(words)
    assert (code, out) == (2, "")
    assert says in err


def test_where_it_is_by_itself(owner, home) -> None:
    """In the folder of the state that systemd, or the XDG specification, says; else it must be
    said."""
    me = owner("api.example.com")
    me.file.write_text('[[upstream]]\nurl = "https://api.example.com"\nintercept = true\n')
    state = home("state")
    made = "warmproxy ca init | head -1"
    for env, folder in (
        ({"STATE_DIRECTORY": f"{state}/a", "XDG_STATE_HOME": f"{state}/b"}, state / "a" / "ca"),
        ({"XDG_STATE_HOME": f"{state}/b"}, state / "b" / "warmproxy" / "ca"),
        ({}, me.home / ".local" / "state" / "warmproxy" / "ca"),
    ):
        assert me.shell(made, **env).stdout == f"made the CA in {folder}\n"
        assert (folder.stat().st_mode & 0o777, len(list(folder.iterdir()))) == (0o700, 2)
    assert (
        "'ca_dir' auto needs $HOME or $STATE_DIRECTORY"
        in me.shell("HOME= warmproxy ca show").stderr
    )


def test_export(owner) -> None:
    """To stdout or a file; over another file only by force; only certificates."""
    me = owner("api.example.com")
    create(me.folder, ["api.example.com"], now=time.time(), days=9)
    prepare(me.folder, ["api.example.com"], now=time.time(), days=9)
    trusted = (me.folder / "trust.pem").read_text()
    roots = x509.load_pem_x509_certificates(trusted.encode())
    assert me.ca("export") == (0, trusted, "")
    file = me.home / "there" / "file"
    for _ in range(2):  # what is there already says the same
        assert me.ca(f"export {file}") == (0, "", "")
        assert file.read_text() == trusted
    said = f"warmproxy: {file} is there already and says something else (see --force)\n"
    assert me.ca(f"export --der {file}") == (1, "", said)
    assert me.ca(f"export --der --force {file}") == (0, "", "")
    assert x509.load_der_x509_certificate(file.read_bytes()) == roots[0]
    names = [
        f"split/warmproxy-{root.fingerprint(root.signature_hash_algorithm).hex()[:8]}.crt"
        for root in roots
    ]
    assert me.ca("export --split split") == (0, "\n".join((*names, "")), "")
    found = [x509.load_pem_x509_certificate((me.home / name).read_bytes()) for name in names]
    assert found == roots
    bundle = me.ca("export --with-system")[1]
    assert bundle.endswith(trusted)
    assert len(bundle) > 10 * len(trusted)


# -- what trust-help says -----------------------------------------------------------------------


def parts(text: str) -> list[tuple[list[str], list[str]]]:
    """Each way that a text has: what to do, and what undoes it."""
    found: list[tuple[list[str], list[str]]] = [([], [])]
    undoing = False
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1][undoing].append(line[4:])
        elif line == "  undo":
            undoing = True
        elif undoing:
            found.append(([], []))
            undoing = False
    return found


PYTHON = {
    "requests": "import requests; print(requests.get({url!r}).text)",
    "urllib3": "import urllib3; print(urllib3.request('GET', {url!r}, retries=False).data)",
    "httpx": "import httpx; print(httpx.get({url!r}).text)",
    "aiohttp": (
        "import asyncio, aiohttp\n"
        "async def main():\n"
        "    async with aiohttp.ClientSession(trust_env=True) as s, s.get({url!r}) as response:\n"
        "        print(await response.text())\n"
        "asyncio.run(main())"
    ),
}
NODE_GET = "require('https').get({url!r}, (response) => response.pipe(process.stdout))"
JAVA_GET = """\
import java.net.URL;
class Ask {
    public static void main(String[] args) throws Exception {
        System.out.write(new URL(args[0]).openStream().readAllBytes());
        System.out.flush();
    }
}
"""


def asks(me: Owner, name: str, url: str) -> str:
    """The command with which a client asks for the URL."""
    match name:
        case "curl":
            return f"{need('curl')} -sS {url}"
        case "node":
            script = me.home / "ask.js"
            script.write_text(NODE_GET.format(url=url))
            return f"{need('node')} {script}"
        case "java" | "keytool":
            need("javac")
            script = me.home / "Ask.java"
            script.write_text(JAVA_GET)
            return f"{need('java')} -XX:TieredStopAtLevel=1 $OPTIONS {script} {url}"
        case "git":
            return f"{need('git')} ls-remote {url}"
        case "chromium":
            return shlex.join(chromium(me.home, None, "--dump-dom", url))
    script = me.home / "ask.py"
    script.write_text(PYTHON[name].format(url=url))
    return f"{sys.executable} {script}"


def in_shell(client: str, commands: Sequence[str], me: Owner) -> str:
    """The lines for a shell, with what stands for the user's own in them."""
    text = "\n".join(line for line in commands if not line.startswith("curl "))
    if client == "keytool":
        text = text.replace("STORE", f"{me.home}/own.p12").replace("PASSWORD", "changeit")
    return f'set -e\nsudo() {{ "$@"; }}\n{text}\nset +e'


WAYS = [
    ("curl", "curl", 0),
    *(("python", name, 0) for name in PYTHON),
    ("node", "node", 0),
    ("java", "java", 0),
    ("java", "keytool", 1),
    ("git", "git", 0),
    ("chromium", "chromium", 0),
]


@pytest.mark.parametrize(("help", "client", "way"), WAYS, ids=[client for _, client, _ in WAYS])
def test_what_trust_help_says_works(owner, origin, help, client, way) -> None:
    """A client that refused the server takes it after these lines, and refuses it again after
    those that undo them. The second time they are those for a prepared authority, and what it signs
    is taken once it does."""
    port = free_port()
    me = owner(f"127.0.0.1:{port}")
    assert me.ca("init")[0] == 0
    store = f"-Djavax.net.ssl.trustStore={me.home}/own.p12"
    options = f"{store} -Djavax.net.ssl.trustStorePassword=changeit" if client == "keytool" else ""
    for file, more in (("authority.pem", "true"), ("next.pem", "warmproxy ca rotate >&2")):
        if file == "next.pem":
            assert me.ca("rotate --prepare")[0] == 0
        do, undo = parts(me.ca(f"trust-help {help}")[1])[way]
        setup, cleanup = (in_shell(client, lines, me) for lines in (do, undo))
        web = origin(tls=me.serves("127.0.0.1", file), port=port)
        ask = asks(me, client, web.url)
        before = me.shell(ask)
        assert (web.requests, web.token in before.stdout) == ([], False), before
        script = f"{setup}\n{more}\n{ask}\nstatus=$?\n{cleanup}\n{ask}\nexit $status"
        ran = me.shell(script, OPTIONS=options)
        assert len({request.connection for request in web.requests}) == 1, ran
        if client != "git":  # which wants more of a server
            assert ran.returncode == 0, ran
            assert ran.stdout.count(web.token) == 1
        web.close()
    known = ("authority.pem", "trust.pem", "bundle.pem", "java.p12", "split")
    assert {file.name for file in me.folder.iterdir()} <= set(known)


def test_curl_for_one_call(owner, origin) -> None:
    port = free_port()
    me = owner(f"127.0.0.1:{port}")
    assert me.ca("init")[0] == 0
    web = origin(tls=me.serves("127.0.0.1"), port=port)
    [line] = [line for line in me.ca("trust-help curl")[1].splitlines() if "--cacert" in line]
    ran = me.shell(line)
    assert web.token in ran.stdout, ran


def test_the_list_of_the_system(owner, origin) -> None:
    """Debian's, in a file system of the test's own."""
    need("update-ca-certificates")
    me = owner("127.0.0.1")
    assert me.ca("init")[0] == 0
    do, undo = parts(me.ca("trust-help system")[1])[0]
    setup, cleanup = (in_shell("system", lines, me) for lines in (do, undo))
    web = origin(tls=me.serves("127.0.0.1"))
    ask = asks(me, "curl", web.url)
    script = me.home / "script"
    script.write_text(
        "set -e\n"
        f"cp -a /etc/ssl/certs {me.home}/certs\n"
        f"mount --bind {me.home}/certs /etc/ssl/certs\n"
        "mkdir -p /usr/local/share/ca-certificates\n"
        "mount -t tmpfs none /usr/local/share/ca-certificates\n"
        f"{setup}\n{ask}\nstatus=$?\n{cleanup}\n{ask} && exit 9\nexit $status\n"
    )
    ran = me.shell(f"{need('unshare')} --mount --propagation private sh {script}")
    assert ran.returncode == 0, ran
    assert ran.stdout.count(web.token) == 1, ran
    assert len(web.requests) == 1


def test_firefox_takes_it_like_chromium(owner) -> None:
    """Its list is one that certutil writes, too."""
    me = owner("127.0.0.1")
    assert me.ca("init")[0] == 0
    do, undo = parts(me.ca("trust-help firefox")[1])[0]
    script = "\n".join(
        (
            "set -e",
            "mkdir profile",
            f"{need('certutil')} -N --empty-password -d sql:profile",
            *do,
            "certutil -L -d sql:profile",
            *undo,
            "echo undone",
            "certutil -L -d sql:profile",
        )
    )
    ran = me.shell(script.replace("PROFILE", "profile"))
    before, _, after = ran.stdout.partition("undone")
    assert re.search(r"^warmproxy-[0-9a-f]{8} +C,,", before, re.MULTILINE), ran
    assert "warmproxy-" not in after


def test_all_of_it_at_once(owner) -> None:
    """Without a client's name: each of them, and how to be rid of everything."""
    me = owner("127.0.0.1")
    assert me.ca("init")[0] == 0
    assert tuple(HELP) == TRUST_HELP
    code, text, _ = me.ca("trust-help")
    assert code == 0
    assert all(me.ca(f"trust-help {client}")[1] in text for client in ("curl", "firefox"))
    assert "warmproxy exec -- COMMAND" in text
    assert f"remove the folder '{me.folder}'" in text
    assert "{" not in text


# -- exec ---------------------------------------------------------------------------------------


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.mark.parametrize("client", ["curl", *PYTHON, "node", "java"])
def test_exec_has_its_command_trust_it(owner, origin, pki, client) -> None:
    """Besides whom it trusted already, and for as long as it runs."""
    me = owner("127.0.0.1", warm=0)
    assert me.ca("init")[0] == 0
    web, other = origin(tls=me.serves("127.0.0.1")), origin(tls=pki.server(alpn=("http/1.1",)))
    theirs = str(pki.file)
    env = {"SSL_CERT_FILE": theirs, "NODE_EXTRA_CA_CERTS": theirs}
    script = me.home / "script"
    for server in (web, other):
        script.write_text(
            'ls -d "$(dirname "$SSL_CERT_FILE")" "$(dirname "$NODE_EXTRA_CA_CERTS")"\n'
            f"{asks(me, client, server.url)}\n"
        )
        ran = me.shell(f"warmproxy exec --wait 0.1 -- sh {script}", **env)
        assert ran.returncode == 0, ran
        assert server.token in ran.stdout, ran
        for place in ran.stdout.splitlines()[:2]:
            assert not Path(place).exists()


def test_exec_keeps_what_is_set(owner, pki) -> None:
    """What names a file is extended, each its own; Java's options stay, and so does its store."""
    me = owner("127.0.0.1", warm=0)
    assert me.ca("init")[0] == 0
    trusted = (me.folder / "trust.pem").read_text()
    for name in ("one", "two"):
        (me.home / name).write_text(f"{name}\n")
    (me.home / "many").mkdir()
    (me.home / "many" / "a").write_text("three")
    (me.home / "many" / "b").write_text("four")
    env = {
        "REQUESTS_CA_BUNDLE": "one",
        "GIT_SSL_CAINFO": "two",
        "NODE_EXTRA_CA_CERTS": "many",
        "JAVA_TOOL_OPTIONS": "-Dx=y",
    }
    show = " ".join(f'"${name}"' for name in ("REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO"))
    script = f'cat {show} "$NODE_EXTRA_CA_CERTS"; echo "$JAVA_TOOL_OPTIONS"'
    ran = me.shell(f"warmproxy exec --wait 0.1 -- sh -c '{script}'", **env)
    said, _, options = ran.stdout.rstrip("\n").rpartition("\n")
    expected = ("one\n", "one\n", "two\n", "three\nfour\n")
    assert f"{said}\n" == "".join(before + trusted for before in expected)
    assert re.fullmatch(r"-Dx=y -Djavax.net.ssl.trustStore=\"\S+\.p12\"", options)
    theirs = "-Djavax.net.ssl.trustStore=mine"
    ran = me.shell(
        "warmproxy exec --wait 0.1 -- sh -c 'echo $JAVA_TOOL_OPTIONS'", JAVA_TOOL_OPTIONS=theirs
    )
    assert ran.stdout == f"{theirs}\n"
    ran = me.shell("warmproxy exec --wait 0.1 -- true", REQUESTS_CA_BUNDLE="missing")
    assert (ran.returncode, ran.stderr) == (1, "warmproxy: missing: No such file or directory\n")


def test_exec_sets_nothing_where_nothing_is_intercepted(owner) -> None:
    me = owner()
    ran = me.shell("warmproxy exec -- env")
    assert ran.returncode == 0
    assert not any(line.partition("=")[0] in VARIABLES for line in ran.stdout.splitlines())


def test_exec_with_the_running_one(owner, warmproxy) -> None:
    """Its settings say whether there is anything to trust, here too."""
    me = owner("127.0.0.1", warm=0)
    assert me.ca("init")[0] == 0
    proxy = warmproxy()
    for words, env in (("--use-running", {}), ("", {}), ("", {"WARMPROXY_CONFIG": "/dev/null"})):
        script = 'test "$HTTP_PROXY" = "$WANTED" && cat ${NODE_EXTRA_CA_CERTS:-/dev/null}'
        ran = me.shell(
            f"warmproxy exec {words} -- sh -c '{script}'",
            **{"http_proxy": proxy.url, "WANTED": proxy.url} | env,
        )
        expected = "" if env else (me.folder / "trust.pem").read_text()
        assert ran.stdout == expected, ran
    assert proxy.running()


@pytest.mark.parametrize("client", ["curl", "requests", "httpx", "aiohttp"])
def test_exec_has_its_command_intercepted(owner, origin, pki, client) -> None:
    """The whole of it: the origin's own certificate is of an authority that only the proxy trusts,
    and it is the proxy that asks."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    me = owner(f"localhost:{web.port}", ca_file=str(pki.file))
    assert me.ca("init")[0] == 0
    script = me.home / "script"
    script.write_text(asks(me, client, f"https://localhost:{web.port}/"))
    ran = me.shell(f"warmproxy exec -- sh {script}", no_proxy="")
    assert web.token in ran.stdout, ran
    assert [request.values("via") != [] for request in web.requests] == [True]
