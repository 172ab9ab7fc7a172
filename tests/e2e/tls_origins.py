"""Origins that speak TLS: certificates of every kind, and what a server sees of a handshake.

`Secure` is the socket of such an origin's connection. It notes when the handshake was done and
what was in it, and never waits inside OpenSSL, so that a test may write to it, or end it, from its
own thread.
"""

import datetime
import select
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.e2e.origins import Connection

VERSIONS = {
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
NAMES = ("127.0.0.1", "localhost")

# RFC 8446, 6: level fatal (2), description internal_error (80), as a record in the clear
ALERT_IN_CLEAR = b"\x15\x03\x03\x00\x02\x02\x50"


class Secure(ssl.SSLSocket):
    """The server's end of one TLS connection."""

    handshake_at: float | None = None
    """when it was done, by time.monotonic()"""
    name: str | None = None
    """the SNI"""
    _broken = False
    _ended = False

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        self.handshake_at = time.monotonic()

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if not self.pending() and not self._ended:
            poll = select.poll()
            poll.register(self, select.POLLIN)
            poll.poll()
        if self._broken:
            raise ConnectionResetError
        data = super().recv(buflen, flags)
        self._ended = not data
        return data

    def say_close_notify(self) -> None:
        """Send close_notify and wait for nothing."""
        self.setblocking(False)
        try:
            self.unwrap()
        except (ssl.SSLWantReadError, OSError):
            pass

    def break_off(self) -> None:
        """From now on nothing is read: OpenSSL would answer an end that it does not expect with an
        alert, and what follows would not be the only thing that the peer hears."""
        self._broken = True

    def say_in_clear(self, data: bytes) -> None:
        """Write past TLS."""
        socket.socket.send(self, data)


def secure(connection: Connection) -> Secure:
    """The TLS of an origin's connection on which it has begun."""
    sock = connection._sock
    assert isinstance(sock, Secure), sock
    return sock


def shaken(connection: Connection) -> bool:
    """Its handshake is done."""
    sock = connection._sock
    return isinstance(sock, Secure) and sock.handshake_at is not None


class Pki:
    """A certificate authority of the tests, and what it and others issue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))
        self._usual = self.ca.issue_cert(*NAMES)

    def issue(self, *names: str, **more: Any) -> trustme.LeafCert:
        """A certificate of our authority."""
        return self.ca.issue_cert(*names, **more)

    def expired(self) -> trustme.LeafCert:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        return self.issue(*NAMES, not_before=now - 3 * day, not_after=now - day)

    def revoke(self, *revoked: trustme.LeafCert) -> Path:
        """A revocation list of our authority that names these certificates."""
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        lists = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        lists = lists.last_update(now - day).next_update(now + day)
        for leaf in revoked:
            serial = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            lists = lists.add_revoked_certificate(entry.revocation_date(now - day).build())
        path = self.folder / f"crl-{len(revoked)}.pem"
        signed = lists.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path

    def server(
        self,
        certificate: trustme.LeafCert | Path | None = None,
        *,
        version: str | None = None,
        client_ca: trustme.CA | None = None,
        alpn: tuple[str, ...] = ("h2", "http/1.1"),
    ) -> ssl.SSLContext:
        """A context for Origin(tls=...): with `version` it speaks no other, with `client_ca` it
        demands a certificate of the client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = Secure
        context.set_alpn_protocols(list(alpn))
        if version is not None:
            if version < "1.2":
                context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = VERSIONS[version]
        if isinstance(certificate, Path):
            context.load_cert_chain(certificate)
        else:
            (certificate or self._usual).configure_cert(context)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            client_ca.configure_trust(context)

        def note(sock: Any, name: str | None, _: ssl.SSLContext) -> None:
            sock.name = name

        context.sni_callback = note
        return context

    def files(self, name: str, certificate: trustme.LeafCert | None = None) -> tuple[Path, Path]:
        """Certificate and key, for servers and clients that want files."""
        certificate = certificate or self._usual
        chain, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        return chain, key

    def self_signed(self) -> Path:
        """Certificate and key, in one file, that nobody vouches for."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
            .sign(key, hashes.SHA256())
        )
        file = self.folder / "self-signed.pem"
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        return file
