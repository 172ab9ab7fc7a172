"""The key of interception's authority is stolen: for all but its hosts it is worth nothing.

A thief signs what he likes; real clients that trust the authority ask a server that has it. That
the refusal is the constraints' doing shows a control: the same certificate of an authority without
them, which the same client takes in the same way.
"""

import atexit
import datetime
import functools
import ipaddress
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.clients import JAVA, chromium
from tests.e2e.harness import clean_environ, need
from warmproxy.net import authority

ABOVE, HOST, OTHER = "origin.example", "api.origin.example", "other.example"
BELOW, BESIDE = f"x.{HOST}", f"www.{ABOVE}"

Key = ec.EllipticCurvePrivateKey


# -- the thief ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What the authority is for, whom the thief poses as, and with what."""

    hosts: tuple[str, ...]
    asked: str
    names: tuple[str, ...]
    """the subject's alternative names"""
    common: str = ""
    """its common name"""
    between: str = ""
    """an authority of the thief's own below the stolen one; "same": under the stolen one's name"""
    signing: int = 0
    """which of the authority's signing certificates"""
    control: bool = field(default=True)
    """whether clients would take it, were it not for the constraints"""


CASES = {
    "another host": Case((HOST,), OTHER, (OTHER,)),
    "another host beside ours": Case((HOST,), OTHER, (HOST, OTHER)),
    "the host above": Case((HOST,), ABOVE, (ABOVE,)),
    "a host below": Case((HOST,), BELOW, (BELOW,)),
    "a wildcard below": Case((HOST,), BELOW, (f"*.{HOST}",)),
    "a wildcard above": Case((HOST,), BESIDE, (f"*.{ABOVE}",)),
    "an address": Case((HOST,), "127.0.0.1", ("127.0.0.1",)),
    "another address": Case(("127.0.0.1",), "127.0.0.2", ("127.0.0.2",)),
    "a name, where there are addresses only": Case(("127.0.0.1",), OTHER, (OTHER,)),
    "a common name": Case((HOST,), OTHER, (), OTHER, control=False),
    "a common name beside ours": Case((HOST,), OTHER, (HOST,), OTHER, control=False),
    "an authority below": Case((HOST,), OTHER, (OTHER,), between="mine", control=False),
    "an authority of the same name": Case((HOST,), OTHER, (OTHER,), between="same", control=False),
    "a host below the upper of two": Case((ABOVE, HOST), BESIDE, (BESIDE,)),
    "a host below the lower of two": Case((ABOVE, HOST), BELOW, (BELOW,), signing=1),
    "a host below, by the upper of two": Case((ABOVE, HOST), BELOW, (BELOW,)),
}


def stolen(folder: Path) -> tuple[Key, list[x509.Certificate]]:
    """The key of an authority, and its signing certificates."""
    text = (folder / "authority.pem").read_bytes()
    key = serialization.load_pem_private_key(text, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key, x509.load_pem_x509_certificates(text)[1:]


def named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def signed(
    subject: x509.Name, key: Key, by: Key, issuer: x509.Name, *extensions: x509.ExtensionType
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=5))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(by, hashes.SHA256())


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def forged(case: Case, key: Key, issuer: x509.Certificate, file: Path) -> Path:
    """A certificate with its chain and its key, for a server."""
    chain = [issuer]
    name = issuer.subject
    if case.between:
        mine = ec.generate_private_key(ec.SECP256R1())
        name = issuer.subject if case.between == "same" else named("mine")
        chain.insert(0, signed(name, mine, key, issuer.subject, x509.BasicConstraints(True, None)))
        key = mine
    own = ec.generate_private_key(ec.SECP256R1())
    names = [x509.SubjectAlternativeName([general(name) for name in case.names])]
    end = x509.BasicConstraints(False, None)
    leaf = signed(named(case.common), own, key, name, end, *(names if case.names else []))
    pem = serialization.Encoding.PEM
    file.write_bytes(
        b"".join(certificate.public_bytes(pem) for certificate in (leaf, *chain))
        + own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


# -- the clients --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    name: str
    address: str
    port: int
    trust: Path
    home: Path

    @property
    def url(self) -> str:
        return f"https://{self.name}:{self.port}/"


PYTHON = """
import socket, ssl, sys
name, address, port, trust = sys.argv[1:]
context = ssl.create_default_context(cafile=trust)
with socket.create_connection((address, int(port))) as raw:
    with context.wrap_socket(raw, server_hostname=name) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        print(sock.makefile().read())
"""

NODE = """
const [url, address] = process.argv.slice(1);
const found = [{address, family: 4}];
const lookup = (name, options, done) =>
  options.all ? done(null, found) : done(null, address, 4);
require('https').get(url, {lookup}, (response) => response.pipe(process.stdout));
"""


def by_curl(ask: Ask) -> tuple[list[str], dict[str, str]]:
    to = ("--noproxy", "*", "--resolve", f"{ask.name}:{ask.port}:{ask.address}")
    return [need("curl"), "-sS", *to, "--cacert", str(ask.trust), ask.url], {}


def by_python(ask: Ask) -> tuple[list[str], dict[str, str]]:
    words = (ask.name, ask.address, str(ask.port), str(ask.trust))
    return [sys.executable, "-c", PYTHON, *words], {}


def by_node(ask: Ask) -> tuple[list[str], dict[str, str]]:
    return [need("node"), "-e", NODE, ask.url, ask.address], {"NODE_EXTRA_CA_CERTS": str(ask.trust)}


def by_java(ask: Ask) -> tuple[list[str], dict[str, str]]:
    """It takes a trusted certificate as it is: only the constraints below that one count."""
    hosts = ask.home / "hosts"
    hosts.write_text(f"{ask.address} {ask.name}\n")
    options = ("-XX:TieredStopAtLevel=1", f"-Djdk.net.hosts.file={hosts}", "-cp", compiled())
    return [need("java"), *options, "Get", "HttpURLConnection", str(ask.trust), ask.url], {}


@functools.cache
def compiled() -> str:
    """The folder of Java's classes, for all tests."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    (Path(folder) / "Get.java").write_text(JAVA)
    subprocess.run([need("javac"), "-nowarn", "-d", folder, f"{folder}/Get.java"], check=True)
    return folder


def by_chromium(ask: Ask) -> tuple[list[str], dict[str, str]]:
    database = ask.home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    certutil, where = need("certutil"), ("-d", f"sql:{database}")
    subprocess.run([certutil, "-N", "--empty-password", *where], check=True)
    added = ("-A", "-n", "trusted", "-t", "C,,", "-i", str(ask.trust))
    subprocess.run([certutil, *added, *where], check=True)
    command = chromium(ask.home, None, "--dump-dom", ask.url)
    rules = f"--host-resolver-rules=MAP {ask.name} {ask.address}, MAP * ~NOTFOUND"
    rules += f", EXCLUDE {ask.address}"
    return [rules if "--host-resolver-rules" in word else word for word in command], {
        "HOME": str(ask.home)
    }


CLIENTS = {
    "curl": by_curl,
    "python": by_python,
    "node": by_node,
    "java": by_java,
    "chromium": by_chromium,
}


# -- what they do -------------------------------------------------------------------------------


@pytest.fixture
def asks(origin, run, home, stack) -> Callable[..., bool]:
    """Whether a client, asking for `name`, takes a server's certificate for it."""

    def ask(client: str, name: str, certificate: Path, trust: Path) -> bool:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        web = origin(tls=context, host=name if name.startswith("127.") else "127.0.0.1")
        args, env = CLIENTS[client](Ask(name, web.host, web.port, trust, home(client)))
        ran = run(args, clean_environ(**env))
        took = web.token in ran.output
        assert took == bool(web.requests), ran.output
        return took

    return ask


@pytest.fixture
def made(tmp_path) -> Callable[..., Path]:
    """An authority for these hosts."""

    def make(*hosts: str) -> Path:
        folder = tmp_path / "ca"
        authority.create(folder, hosts, now=time.time(), days=1)
        return folder

    return make


@pytest.mark.parametrize("hosts", [(HOST,), ("127.0.0.1", "::1"), (HOST, ABOVE, "127.0.0.1")])
@pytest.mark.parametrize("client", CLIENTS)
def test_its_hosts_are_taken(asks, made, tmp_path, client, hosts) -> None:
    """By each client, with the certificates that the authority makes: the rest means something."""
    folder = made(*hosts)
    loaded = authority.Authority.load(folder)
    for host in hosts:
        if host != "::1":
            leaf = tmp_path / f"{host}.pem"
            leaf.write_bytes(loaded.leaf(host, time.time()).pem)
            assert asks(client, host, leaf, folder / "trust.pem")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_else_is_taken(asks, made, tmp_path, client, name) -> None:
    case = CASES[name]
    if case.control:
        key = ec.generate_private_key(ec.SECP256R1())
        any_name = named("anything")
        free = signed(any_name, key, key, any_name, x509.BasicConstraints(True, None))
        trust = tmp_path / "free.pem"
        trust.write_bytes(free.public_bytes(serialization.Encoding.PEM))
        assert asks(client, case.asked, forged(case, key, free, tmp_path / "control.pem"), trust)
    folder = made(*case.hosts)
    key, signing = stolen(folder)
    certificate = forged(case, key, signing[case.signing], tmp_path / "forged.pem")
    assert not asks(client, case.asked, certificate, folder / "trust.pem")
