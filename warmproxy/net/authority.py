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
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

from warmproxy.errors import StartError
from warmproxy.net import private
from warmproxy.origin import normalise_host

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import pkcs12
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
NOWHERE_4, NOWHERE_6 = "198.51.100.255", "2001:db8:ffff::ffff"
"""What is permitted of a kind of name where nothing is to be: none of it exists (RFC 6761, 6.4;
RFC 5737; RFC 3849)."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host."""

    pem: bytes
    """It, the one that signed it, and its key: what `load_cert_chain` wants."""
    not_after: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Root:
    """A certificate for clients to trust."""

    pem: bytes
    fingerprint: str
    """SHA-256, as tools write it: AB:CD:..."""
    hosts: tuple[str, ...]
    not_after: float


class Authority:
    """What `load` found good."""

    hosts: frozenset[str]
    """What it may speak for, as `normalise_host` writes them."""
    not_before: float
    not_after: float
    """Seconds since the epoch."""
    fingerprint: str
    """The root's."""
    certificate: bytes
    """The root, PEM."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, root: x509.Certificate, *signing: x509.Certificate
    ) -> None:
        self._key = key
        self._by_host = {host: cert for cert in signing for host in _permitted(cert)}
        self.hosts = frozenset(self._by_host)
        self.not_before = root.not_valid_before_utc.timestamp()
        self.not_after = root.not_valid_after_utc.timestamp()
        self.fingerprint = _fingerprint(root)
        self.certificate = _pem(root)

    @staticmethod
    def load(folder: Path) -> "Authority":
        """The one that signs. Raises StartError where there is none, or none to sign with."""
        return _load(folder, KEY, time.time())

    @staticmethod
    def load_for(folder: str, hosts: Iterable[str]) -> "Authority":
        """The same, where it may speak for all of these hosts. Raises StartError."""
        if not folder:
            raise StartError("there is no home to keep a CA in: set ca_dir")
        found = Authority.load(Path(folder))
        if strangers := [host for host in hosts if not found.covers(host)]:
            raise StartError(
                f"the CA in {folder} may not speak for {', '.join(strangers)}: have another one "
                "with warmproxy ca rotate, and let clients learn it"
            )
        return found

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
    with _errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.check_folder(folder)
    with _errors(folder), private.locked(folder):
        if os.path.lexists(folder / KEY):
            raise StartError(
                f"there is a CA in {folder} already, and it stays: warmproxy ca rotate replaces it"
            )
        made, file = _make(hosts, now, days)
        private.write(folder / TRUST, made.certificate, 0o644)
        private.write(folder / KEY, file, 0o600)
    return made


def prepare(folder: Path, hosts: Iterable[str], *, now: float, days: int) -> Authority:
    """Make the successor, which clients may trust from now on; `rotate` puts it to use. One that
    was prepared before is dropped. Raises StartError."""
    with _errors(folder), private.locked(folder):
        current = roots((folder / KEY).read_bytes())[:1]
        dropped = prepared(folder)
        made, file = _make(hosts, now, days)
        earlier = [root for root in _trusted(folder) if root != dropped]
        private.write(folder / NEXT, file, 0o600)
        _write_trust(folder, [*current, *roots(file)[:1], *earlier], now)
    return made


def rotate(
    folder: Path, hosts: Iterable[str], *, now: float, days: int, retire: bool = False
) -> Authority:
    """Put the prepared successor to use, or a new one where none was prepared.

    What signed until now stays in trust.pem until it expires. With `retire`, which is for when the
    key was stolen, it leaves at once, and so does what was prepared beside it. Wherever this fails,
    the folder holds a whole authority. Raises StartError.
    """
    hosts = {normalise_host(host) for host in hosts}
    with _errors(folder), private.locked(folder):
        os.stat(folder / KEY)  # whatever it holds, there must be one to replace
        is_prepared = not retire and os.path.lexists(folder / NEXT)
        if is_prepared:
            made = _load(folder, NEXT, now)
            if made.hosts != hosts:
                raise StartError(
                    f"what was prepared is for {', '.join(sorted(made.hosts))}, and that is not "
                    "what is intercepted now: warmproxy ca rotate --prepare makes another one"
                )
        else:
            made, file = _make(hosts, now, days)
        # known before it signs; what signed until now is known for as long as it may be met
        [root] = roots(made.certificate)
        _write_trust(folder, [root, *_trusted(folder)], now)
        if is_prepared:
            private.rename(folder / NEXT, folder / KEY)
        else:
            private.write(folder / KEY, file, 0o600)
        if retire:
            (folder / NEXT).unlink(missing_ok=True)
            _write_trust(folder, [root], now)
    return made


def trusted(folder: Path) -> bytes:
    """trust.pem: what clients are to trust. Raises StartError."""
    with _errors(folder):
        return (folder / TRUST).read_bytes()


def prepared(folder: Path) -> Root | None:
    """The root of the successor, if there is one. Raises StartError."""
    if not os.path.lexists(folder / NEXT):
        return None
    with _errors(folder):
        return next(iter(roots((folder / NEXT).read_bytes())), None)


def roots(bundle: bytes) -> list[Root]:
    """What a file of certificates holds, in order."""
    found = []
    for certificate in _certificates(bundle):
        try:
            hosts = tuple(_permitted(certificate))
        except ValueError:
            hosts = ()
        ends = certificate.not_valid_after_utc.timestamp()
        found.append(Root(_pem(certificate), _fingerprint(certificate), hosts, ends))
    return found


def java_truststore(bundle: bytes) -> bytes:
    """The certificates of a bundle, as Java wants them: PKCS #12, without a password."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a system trusts is not ours to judge
        entries = [
            pkcs12.PKCS12Certificate(certificate, str(number).encode())
            for number, certificate in enumerate(_certificates(bundle))
        ]
    return pkcs12.serialize_java_truststore(entries, serialization.NoEncryption())


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
    if addresses:
        # GnuTLS takes each version for a kind of its own; Java fails where it has to compare an
        # address of version 4 with a constraint of version 6, so that is never reached.
        versions = {address.version for address in addresses}
        addresses += [ip_address(NOWHERE_4)] if 4 not in versions else []
        addresses += [ip_address(NOWHERE_6)] if 6 not in versions else []
        addresses.sort(key=lambda address: address.version)
    permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    permitted += [x509.IPAddress(ip_network(address)) for address in addresses]
    permitted += [x509.RFC822Name(NOWHERE), x509.UniformResourceIdentifier(NOWHERE)]
    excluded: list[x509.GeneralName] = [
        x509.DNSName(f".{name}")
        for name in names
        if not any(_is_below(other, name) for other in names)
    ]
    if not addresses:
        everywhere = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
        excluded += [x509.IPAddress(network) for network in everywhere]
    return x509.NameConstraints(permitted, excluded)


def _permitted(certificate: x509.Certificate) -> list[str]:
    """The hosts of a certificate's constraints. Raises ValueError where it has none."""
    try:
        said = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        raise ValueError("has no name constraints") from None
    hosts = []
    for name in said.value.permitted_subtrees or ():
        if isinstance(name, x509.DNSName):
            hosts.append(name.value)
        elif isinstance(name, x509.IPAddress):
            network = name.value
            assert isinstance(network, IPv4Network | IPv6Network)
            hosts.append(str(network.network_address))
    return [host for host in hosts if host not in (NOWHERE, NOWHERE_4, NOWHERE_6)]


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
    with _errors(folder):
        text = private.read(path)
    again = " --prepare" if name == NEXT else ""
    remedy = f": make another one with warmproxy ca rotate{again}"
    try:
        key = serialization.load_pem_private_key(text, None)
        root, *signing = x509.load_pem_x509_certificates(text)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        signing = []
    if not signing or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StartError(f"{path} is no key of ours with its certificates{remedy}")
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


# ── the folder ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """What is to be said of an OSError."""
    try:
        yield
    except FileNotFoundError:
        raise StartError(f"no CA in {folder}: make one with warmproxy ca init") from None
    except OSError as error:
        raise StartError(f"{error.filename or folder}: {error.strerror}") from error


def _trusted(folder: Path) -> list[Root]:
    try:
        return roots((folder / TRUST).read_bytes())
    except FileNotFoundError:
        return []


def _write_trust(folder: Path, trusted: Iterable[Root], now: float) -> None:
    """Each once, without those that have expired."""
    bundle = [root.pem for root in dict.fromkeys(trusted) if root.not_after > now]
    private.write(folder / TRUST, b"".join(bundle), 0o644)


def _certificates(text: bytes) -> Iterator[x509.Certificate]:
    """What is none is left out: a system's bundle holds what it holds."""
    for block in re.findall(
        rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL
    ):
        try:
            yield x509.load_pem_x509_certificate(block)
        except ValueError:
            continue


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()
