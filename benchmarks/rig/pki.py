"""Certificates for one run, and the context of a client in a hurry."""

import ssl
from pathlib import Path

try:
    import trustme
except ImportError:
    trustme = None


def refusal(name: str) -> str:
    """Why there can be none here; empty where there can."""
    return "" if trustme is not None else f"{name} needs trustme: run it with .venv/bin/python"


def make(folder: Path, *hosts: str) -> tuple[Path, Path]:
    """An authority's certificate, and what an origin on these hosts needs: both PEM files."""
    ca_file, certificate = folder / "ca.pem", folder / "origin.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(certificate)
    return ca_file, certificate


def client_context() -> ssl.SSLContext:
    """TLS 1.3 for the client: it checks nothing, to have its answers soon; the proxy does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
