"""How programs come to trust our authority: the environment of one command, and words for people.

Most variables name a file that stands in the place of what a program trusted before, so what we
give them holds that too.
"""

import os
import shlex
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from warmproxy.errors import StartError
from warmproxy.net import authority
from warmproxy.net.authority import Root

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, BSD, macOS
)
"""Where systems have what they trust."""
FALLS_BACK = {
    "SSL_CERT_FILE": (),
    "CURL_CA_BUNDLE": ("SSL_CERT_FILE",),
    "REQUESTS_CA_BUNDLE": ("CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    "GIT_SSL_CAINFO": ("CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    "PIP_CERT": ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
    "AWS_CA_BUNDLE": ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
}
"""A variable that replaces what its programs trust -> what they look at where it is not set."""
NODE = "NODE_EXTRA_CA_CERTS"
"""It adds to what Node trusts."""
JAVA = "JAVA_TOOL_OPTIONS"
STORE = "-Djavax.net.ssl.trustStore"


def system_bundle(environ: Mapping[str, str] = os.environ) -> bytes:
    """What this system trusts, PEM. Raises StartError where it does not say."""
    for name in (environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *BUNDLES):
        if name and Path(name).is_file():
            return _read(name)
    raise StartError(
        "this system has no file of the authorities that it trusts: install ca-certificates, or "
        "set SSL_CERT_FILE"
    )


@contextmanager
def environment(folder: Path, environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The variables for one command, to trust the authority in a folder too.

    What `environ` names already is extended. The files are gone when this is left. Raises
    StartError.
    """
    ours = authority.trusted(folder)
    with tempfile.TemporaryDirectory(prefix="warmproxy-trust-") as place:  # mode 0700
        yield dict(_variables(Path(place), ours, environ))


def _variables(place: Path, ours: bytes, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    system = system_bundle(environ)
    files: dict[bytes, str] = {}

    def file(data: bytes, suffix: str = ".pem") -> str:
        if data not in files:
            path = place / f"trust{len(files)}{suffix}"
            path.write_bytes(data)
            files[data] = str(path)
        return files[data]

    for name, others in FALLS_BACK.items():
        before = next((environ[other] for other in (name, *others) if environ.get(other)), None)
        yield name, file((_read(before) if before else system) + ours)
    before = environ.get(NODE)
    yield NODE, file((_read(before) if before else b"") + ours)
    options = environ.get(JAVA, "")
    if STORE not in options:  # theirs may have a password that we do not know
        store = file(authority.java_truststore(system + ours), ".p12")
        yield JAVA, f'{options} {STORE}="{store}"'.strip()


def _read(name: str) -> bytes:
    """A bundle, or a folder of certificates. Raises StartError."""
    path = Path(name)
    try:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
        return b"".join(file.read_bytes().rstrip() + b"\n" for file in files)
    except OSError as error:
        raise StartError(f"{name}: {error.strerror}") from error


# ── for people ───────────────────────────────────────────────────────────────────────────────


def nickname(fingerprint: str) -> str:
    """The name that a certificate has in other programs' lists."""
    return f"warmproxy-{fingerprint.replace(':', '')[:8].lower()}"


def instructions(folder: Path, root: Root, url: str, client: str | None) -> str:
    """What a client, or each, needs to trust a root, and how to undo it; `url` is an example."""
    words = {
        "{trust}": folder / authority.TRUST,
        "{bundle}": folder / "bundle.pem",
        "{store}": folder / "java.p12",
        "{split}": folder / "split",
        "{folder}": folder,
        "{name}": nickname(root.fingerprint),
        "{url}": url,
    }
    text = "\n".join([HELP[client]] if client else [FIRST, *HELP.values(), LAST])
    for word, value in words.items():
        text = text.replace(word, shlex.quote(str(value)))
    return text.rstrip("\n")


FIRST = """\
For one command, with nothing to undo afterwards:
    warmproxy exec -- COMMAND

For more, tell each program that you use. What the variables say holds in the shell that has them.
"""
LAST = """\
After each `warmproxy ca rotate` do the same again. When you need it no more, undo it, take
`intercept` out of the settings, and remove the folder {folder}.
"""

# A command is indented by four spaces: tests run them.
HELP = {
    "curl": """\
curl
    warmproxy ca export --with-system --force {bundle}
    export CURL_CA_BUNDLE={bundle}
  or, for the intercepted hosts only, with each call
    curl --cacert {trust} {url}
  undo
    unset CURL_CA_BUNDLE
""",
    "python": """\
Python: requests, pip (REQUESTS_CA_BUNDLE), urllib3, httpx, aiohttp (SSL_CERT_FILE)
    warmproxy ca export --with-system --force {bundle}
    export REQUESTS_CA_BUNDLE={bundle}
    export SSL_CERT_FILE={bundle}
  undo
    unset REQUESTS_CA_BUNDLE SSL_CERT_FILE
""",
    "node": """\
Node
    export NODE_EXTRA_CA_CERTS={trust}
  undo
    unset NODE_EXTRA_CA_CERTS
""",
    "java": """\
Java
    warmproxy ca export --java --force {store}
    export JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=\\"{store}\\"
  undo
    unset JAVA_TOOL_OPTIONS
  or, for an application that has a truststore of its own, with its name and password
    warmproxy ca export --split {split}
    keytool -importcert -noprompt -alias {name} -file {split}/{name}.crt \\
        -keystore STORE -storepass PASSWORD
  undo
    keytool -delete -alias {name} -keystore STORE -storepass PASSWORD
""",
    "go": """\
Programs in Go
    warmproxy ca export --with-system --force {bundle}
    export SSL_CERT_FILE={bundle}
  undo
    unset SSL_CERT_FILE
""",
    "git": """\
git, for one host
    git config --global http.{url}.sslCAInfo {trust}
  undo
    git config --global --unset http.{url}.sslCAInfo
""",
    "system": """\
The system's own list, for all of its users and programs: more than most need
  Debian, Ubuntu
    warmproxy ca export --split {split}
    sudo cp {split}/{name}.crt /usr/local/share/ca-certificates/
    sudo update-ca-certificates
  undo
    sudo rm /usr/local/share/ca-certificates/{name}.crt
    sudo update-ca-certificates --fresh
  Fedora, RHEL
    warmproxy ca export --split {split}
    sudo cp {split}/{name}.crt /etc/pki/ca-trust/source/anchors/
    sudo update-ca-trust
  undo
    sudo rm /etc/pki/ca-trust/source/anchors/{name}.crt
    sudo update-ca-trust
  macOS
    warmproxy ca export --split {split}
    sudo security add-trusted-cert -d -r trustRoot {split}/{name}.crt
  undo
    sudo security remove-trusted-cert -d {split}/{name}.crt
""",
    "chromium": """\
Chromium and Chrome on Linux (certutil is in libnss3-tools or nss-tools)
    mkdir -p "$HOME/.pki/nssdb"
    [ -e "$HOME/.pki/nssdb/cert9.db" ] || certutil -N --empty-password -d "sql:$HOME/.pki/nssdb"
    warmproxy ca export --split {split}
    certutil -A -d "sql:$HOME/.pki/nssdb" -n {name} -t C,, -i {split}/{name}.crt
  undo
    certutil -D -d "sql:$HOME/.pki/nssdb" -n {name}
""",
    "firefox": """\
Firefox, with the folder of its profile (about:profiles names it)
    warmproxy ca export --split {split}
    certutil -A -d "sql:PROFILE" -n {name} -t C,, -i {split}/{name}.crt
  undo
    certutil -D -d "sql:PROFILE" -n {name}
""",
}
