"""The certificate authority of interception: made, loaded, rotated, and its leaf certificates.

The only importer of cryptography. Nothing of the daemon imports this module unless an upstream is
intercepted.

    root      self-signed, what clients trust. Its key signs below and is never written anywhere.
    signing   signed by the root; its key is the one on disk. It may speak for the hosts only.
    leaf      signed by a signing certificate, for one host and two days.

There are two levels since some verifiers (Java's, for one) take a certificate that they trust as it
is and never look at its name constraints; those of the signing certificate are looked at by all.
Whoever steals the key has a CA for the hosts and nothing else: see `_constraints`.

    authority.pem   0600: the key, the root and its signing certificates: what signs
    next.pem        0600: likewise, the prepared successor
    trust.pem       the roots: the current one, the successor, then earlier ones
"""

import datetime
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

from warmproxy.errors import StartError
from warmproxy.origin import normalise_host

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise StartError(
        "intercept and warmproxy ca need the library cryptography: "
        "pip install 'warmproxy[intercept]'"
    ) from error

KEY = "authority.pem"
NEXT = "next.pem"
TRUST = "trust.pem"

LEAF_SECONDS = 48 * 3600.0
"""The life of a leaf certificate."""
BACK_SECONDS = 3600.0
"""So much before now a certificate begins: clocks differ."""
DAY = 86400.0
NOWHERE = "warmproxy.invalid"
"""What is permitted of a kind of name where nothing is to be: it exists nowhere (RFC 6761, 6.4)."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host."""

    pem: bytes
    """It, the one that signed it, and its key: what `load_cert_chain` wants."""
    not_after: float
    """Seconds since the epoch."""


class Authority:
    """What `load` found good."""

    hosts: frozenset[str]
    """What it may speak for, as `normalise_host` writes them."""
    not_before: float
    not_after: float
    """Seconds since the epoch."""
    fingerprint: str
    """SHA-256 of the root, as tools write it: AB:CD:..."""
    certificate: bytes
    """The root, PEM: what a client is to trust."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, root: x509.Certificate, *signing: x509.Certificate
    ) -> None:
        self._key = key
        self._by_host = {host: cert for cert in signing for host in _permitted(cert)}
        self.hosts = frozenset(self._by_host)
        self.not_before = root.not_valid_before_utc.timestamp()
        self.not_after = root.not_valid_after_utc.timestamp()
        self.fingerprint = fingerprint(root)
        self.certificate = _pem(root)

    @staticmethod
    def load(folder: Path) -> "Authority":
        """The one that signs. Raises StartError where there is none, or none to sign with."""
        return _load(folder, KEY, time.time())

    def covers(self, host: str) -> bool:
        """Whether it may speak for this very host."""
        try:
            return normalise_host(host) in self.hosts
        except ValueError:
            return False

    def leaf(self, host: str, now: float) -> Leaf:
        """A new certificate and key for a host. Raises ValueError where it is not covered, or the
        authority has expired."""
        if not self.covers(host):
            raise ValueError(f"the CA does not speak for {host}")
        if now >= self.not_after:
            raise ValueError("the CA has expired")
        host = normalise_host(host)
        issuer = self._by_host[host]
        key = ec.generate_private_key(ec.SECP256R1())
        begins = max(now - BACK_SECONDS, self.not_before)
        ends = min(now + LEAF_SECONDS, self.not_after)
        # Without a subject, of which no name is ever too long; the alternative name is critical
        # then (RFC 5280, 4.2.1.6).
        leaf = (
            _builder(x509.Name([]), issuer.subject, key, self._key, begins, ends)
            .add_extension(x509.SubjectAlternativeName([_general(host)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(_pem(leaf) + _pem(issuer) + _key_pem(key), float(int(ends)))


def create(folder: Path, hosts: Iterable[str], *, now: float, days: int) -> Authority:
    """Make an authority for these hosts where none is. Raises StartError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{folder}: {error.strerror}") from error
    with _locked(folder):
        if os.path.lexists(folder / KEY):
            raise StartError(
                f"there is a CA in {folder} already, and it stays; warmproxy ca rotate replaces it"
            )
        made, parts = _make(hosts, now, days)
        _write(folder / TRUST, made.certificate, 0o644)
        _write(folder / KEY, parts, 0o600)
    return made


def prepare(folder: Path, hosts: Iterable[str], *, now: float, days: int) -> Authority:
    """Make the successor, which clients may trust from now on; `rotate` puts it to use. One that
    was prepared before is dropped. Raises StartError."""
    with _locked(folder):
        current, dropped = _root_in(folder, KEY), _root_in(folder, NEXT, missing_ok=True)
        made, parts = _make(hosts, now, days)
        _write(folder / NEXT, parts, 0o600)
        first = [root for root in (current, made.certificate) if root]
        _write_trust(folder, first, _without(_trusted(folder), dropped), now)
    return made


def rotate(
    folder: Path, hosts: Iterable[str], *, now: float, days: int, retire: bool = False
) -> Authority:
    """Put the prepared successor to use, or a new one where none was prepared.

    What signed until now stays in trust.pem until it expires, or, with `retire`, leaves it at once.
    Wherever this fails, the folder holds a whole authority. Raises StartError.
    """
    hosts = tuple(hosts)
    with _locked(folder):
        _root_in(folder, KEY)
        parts = b""
        if os.path.lexists(folder / NEXT):
            made = _load(folder, NEXT, now)
            if made.hosts != frozenset(map(normalise_host, hosts)):
                raise StartError(
                    f"what was prepared is for {', '.join(sorted(made.hosts))}, which is not what "
                    "is intercepted now: warmproxy ca rotate --prepare, then let clients learn it"
                )
        else:
            made, parts = _make(hosts, now, days)
        # known before it signs, and what signed until now for as long as it may
        _write_trust(folder, [made.certificate], _trusted(folder), now)
        if parts:
            _write(folder / KEY, parts, 0o600)
        else:
            _replace(folder / NEXT, folder / KEY)
        if retire:
            _write_trust(folder, [made.certificate], [], now)
    return made


def trusted(folder: Path) -> bytes:
    """trust.pem: what clients are to trust. Raises StartError."""
    try:
        return (folder / TRUST).read_bytes()
    except FileNotFoundError:
        raise _no_ca(folder) from None
    except OSError as error:
        raise StartError(f"{folder / TRUST}: {error.strerror}") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256, AB:CD:..."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


# ── what it may speak for ────────────────────────────────────────────────────────────────────


def _constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    """For these hosts and no other name.

    A permitted DNS name admits what is below it too (RFC 5280, 4.2.1.10), so that is excluded,
    unless another of the hosts is there. A kind of name of which nothing is said is free, so
    something is said of each kind that a server can be known by; not of subjects, since then Go
    refuses all.
    """
    names = [host for host in hosts if _address(host) is None] or [NOWHERE]
    addresses = [address for host in hosts if (address := _address(host))]
    permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    permitted += [x509.IPAddress(ip_network(address)) for address in addresses]
    permitted += [x509.RFC822Name(NOWHERE), x509.UniformResourceIdentifier(NOWHERE)]
    excluded: list[x509.GeneralName] = [
        x509.DNSName(f".{name}")
        for name in names
        if not any(_is_below(other, name) for other in names)
    ]
    versions = {address.version for address in addresses}
    if 4 not in versions:
        excluded.append(x509.IPAddress(IPv4Network("0.0.0.0/0")))
    if 6 not in versions:
        excluded.append(x509.IPAddress(IPv6Network("::/0")))
    return x509.NameConstraints(permitted, excluded)


def _permitted(certificate: x509.Certificate) -> list[str]:
    """The hosts of a certificate's constraints. Raises ValueError where it has none."""
    try:
        said = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        raise ValueError("has no name constraints") from None
    hosts = []
    for name in said.value.permitted_subtrees or ():
        if isinstance(name, x509.DNSName) and name.value != NOWHERE:
            hosts.append(name.value)
        elif isinstance(name, x509.IPAddress):
            network = name.value
            assert isinstance(network, IPv4Network | IPv6Network)
            hosts.append(str(network.network_address))
    return hosts


def _layers(hosts: Iterable[str]) -> list[list[str]]:
    """The hosts, apart where one is below another: what is below the upper is excluded there."""
    hosts = sorted(hosts)
    layers: dict[int, list[str]] = {}
    for host in hosts:
        depth = sum(_is_below(host, other) for other in hosts)
        layers.setdefault(depth, []).append(host)
    return [layers[depth] for depth in sorted(layers)]


def _is_below(host: str, other: str) -> bool:
    return host.endswith(f".{other}") and _address(host) is None


def _address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _general(host: str) -> x509.GeneralName:
    address = _address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


# ── making ───────────────────────────────────────────────────────────────────────────────────


def _make(hosts: Iterable[str], now: float, days: int) -> tuple[Authority, bytes]:
    """A new authority, and what its file holds."""
    layers = _layers({normalise_host(host) for host in hosts})
    if not layers:
        raise StartError("there is no host for a CA to speak for")
    begins, ends = now - BACK_SECONDS, now + days * DAY
    once = ec.generate_private_key(ec.SECP256R1())  # gone when this returns
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"warmproxy CA {_utc(now):%Y-%m-%d} {secrets.token_hex(4)}"
    everything = [host for layer in layers for host in layer]
    constraints = _constraints(everything)
    root = _authority(_name(name), _name(name), once, once, begins, ends, constraints, 1)
    signing = [
        _authority(
            _name(f"{name} signing {number}"),
            root.subject,
            key,
            once,
            begins,
            ends,
            _constraints(layer),
            0,
        )
        for number, layer in enumerate(layers, 1)
    ]
    file = b"".join((_key_pem(key), _pem(root), *map(_pem, signing)))
    return Authority(key, root, *signing), file


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "warmproxy"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    begins: float,
    ends: float,
    constraints: x509.NameConstraints,
    depth: int,
) -> x509.Certificate:
    return (
        _builder(subject, issuer, key, by, begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(constraints, critical=True)
        .sign(by, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    begins: float,
    ends: float,
) -> x509.CertificateBuilder:
    """What all of them have: good for TLS servers and nothing else."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(begins))
        .not_valid_after(_utc(ends))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
        .add_extension(_TLS, critical=False)
    )


_TLS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)  # whole ones


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# ── loading ──────────────────────────────────────────────────────────────────────────────────


def _load(folder: Path, name: str, now: float) -> Authority:
    path = folder / name
    text = _read_private(folder, path)
    again = " --prepare" if name == NEXT else ""
    remedy = f": make another one with warmproxy ca rotate{again}"
    try:
        key = serialization.load_pem_private_key(text, None)
        root, *signing = x509.load_pem_x509_certificates(text)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        raise StartError(f"{path} is no key with its certificates{remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not signing:
        raise StartError(f"{path} was not made by warmproxy{remedy}")
    if (why := _why_not(key, root, signing)) is not None:
        raise StartError(f"{path}: {why}{remedy}")
    found = Authority(key, root, *signing)
    if now >= found.not_after:
        raise StartError(f"the CA in {path} expired on {day(found.not_after)}{remedy}")
    if now < found.not_before:
        begins = day(found.not_before)
        raise StartError(f"the CA in {path} is not valid before {begins}: is the clock right?")
    return found


def day(seconds: float) -> str:
    """A moment, for a person."""
    return f"{_utc(seconds):%Y-%m-%d %H:%M} UTC"


def _why_not(
    key: ec.EllipticCurvePrivateKey, root: x509.Certificate, signing: Sequence[x509.Certificate]
) -> str | None:
    """What is wrong with them, if anything: we never sign with what could speak for more."""
    for certificate, depth, issuer in ((root, 1, root), *((one, 0, root) for one in signing)):
        try:
            certificate.verify_directly_issued_by(issuer)
            said = {found.oid: found for found in certificate.extensions}
            basic = said[x509.BasicConstraints.oid]
            names = said[x509.NameConstraints.oid]
            hosts = _permitted(certificate)
        except (ValueError, KeyError, TypeError, InvalidSignature):
            return "its certificates are no CA with name constraints"
        if not (basic.critical and basic.value == x509.BasicConstraints(True, depth)):
            return "its certificates may sign other CAs"
        if x509.ExtendedKeyUsage.oid not in said or said[x509.ExtendedKeyUsage.oid].value != _TLS:
            return "its certificates may sign for more than TLS servers"
        if not (names.critical and names.value == _constraints(hosts)):
            return "its name constraints are not those for exactly its hosts"
        if depth == 0 and certificate.public_key() != key.public_key():
            return "its key and its certificates do not belong together"
    return None


def _read_private(folder: Path, path: Path) -> bytes:
    """A file that nobody else can read or put there. Raises StartError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            of_file, of_folder = os.fstat(fd), os.stat(folder)
            text = file.read(2**20)
    except FileNotFoundError:
        raise _no_ca(folder) from None
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
    for place, found, forbidden, mode in (
        (folder, of_folder, 0o022, "700"),
        (path, of_file, 0o077, "600"),
    ):
        if found.st_uid not in (os.geteuid(), 0):
            raise StartError(f"{place} belongs to another user, who could have put any key there")
        if stat.S_IMODE(found.st_mode) & forbidden:
            can = "write to" if place is folder else "read"
            raise StartError(f"others can {can} {place}: chmod {mode} {place}, then rotate the CA")
    return text


def _no_ca(folder: Path) -> StartError:
    return StartError(f"no CA in {folder}: make one with warmproxy ca init")


def _root_in(folder: Path, name: str, *, missing_ok: bool = False) -> bytes:
    """The root of a file that may be anything, PEM; empty where it has none."""
    try:
        text = (folder / name).read_bytes()
    except FileNotFoundError:
        if missing_ok:
            return b""
        raise _no_ca(folder) from None
    except OSError as error:
        raise StartError(f"{folder / name}: {error.strerror}") from error
    return next(iter(_split(text)), b"")


# ── the folder ───────────────────────────────────────────────────────────────────────────────


def _trusted(folder: Path) -> list[bytes]:
    try:
        return _split((folder / TRUST).read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StartError(f"{folder / TRUST}: {error.strerror}") from error


def _split(text: bytes) -> list[bytes]:
    """Each certificate of a bundle, PEM, as we write it; what is none is left out."""
    found = []
    for block in re.findall(
        rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.S
    ):
        try:
            found.append(_pem(x509.load_pem_x509_certificate(block)))
        except ValueError:
            continue
    return found


def _without(certificates: Sequence[bytes], dropped: bytes) -> list[bytes]:
    return [certificate for certificate in certificates if certificate != dropped]


def _write_trust(
    folder: Path, first: Sequence[bytes], earlier: Iterable[bytes], now: float
) -> None:
    """`first`, then the earlier ones that have not expired."""
    bundle = dict.fromkeys(first)
    for pem in earlier:
        if x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp() > now:
            bundle[pem] = None
    _write(folder / TRUST, b"".join(bundle), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and with this mode from the first moment on. Raises StartError."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
    _replace(new, path)


def _replace(new: Path, path: Path) -> None:
    try:
        os.replace(new, path)
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One command at a time. Raises StartError where the folder is not there."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise _no_ca(folder) from None
    except OSError as error:
        raise StartError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
