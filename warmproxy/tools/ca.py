"""`warmproxy ca`: make, show, export and rotate the authority that interception needs.

The key is never printed: what comes out of here are certificates.
"""

import ssl
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from warmproxy.errors import ConfigError, StartError
from warmproxy.net import authority
from warmproxy.net.authority import Authority
from warmproxy.settings import Settings
from warmproxy.tools import trust

Format = Literal["pem", "der", "java", "with-system", "split"]


def ca_folder(settings: Settings) -> Path:
    """Where the authority is. Raises ConfigError where nothing says."""
    if not settings.ca_dir:
        raise ConfigError(["'ca_dir' auto needs $HOME or $STATE_DIRECTORY: set it to a folder"])
    return Path(settings.ca_dir)


def init(settings: Settings, *, days: int) -> int:
    """Make it. Returns 0. Raises ConfigError where nothing is intercepted, StartError."""
    folder = ca_folder(settings)
    made = authority.create(folder, _wanted(settings), now=time.time(), days=days)
    print(f"made the CA in {folder}")
    _print(made)
    print("Its key is in authority.pem. Whoever has it can pose as these hosts, and no other.")
    print("Next: warmproxy ca trust-help says how clients come to trust it.")
    return 0


def rotate(settings: Settings, *, days: int, prepare: bool, retire: bool) -> int:
    """Another one takes its place. Returns 0. Raises ConfigError, StartError."""
    folder, hosts, now = ca_folder(settings), _wanted(settings), time.time()
    if prepare:
        made = authority.prepare(folder, hosts, now=now, days=days)
        print(f"prepared the next CA in {folder}; it does not sign yet")
        _print(made)
        print("Next: let clients learn it (warmproxy ca trust-help); then warmproxy ca rotate.")
        return 0
    made = authority.rotate(folder, hosts, now=now, days=days, retire=retire)
    print(f"another CA signs in {folder}")
    _print(made)
    if retire:
        print("What was before is not in trust.pem any more: take it out of clients too.")
    else:
        print("What signed until now stays in trust.pem until it expires.")
    print("Next: SIGHUP has a warmproxy that runs take it; clients with a copy need it again.")
    return 0


def show(settings: Settings) -> int:
    """Print what it is. Returns 0, or 1 where it does not cover all that is intercepted."""
    folder = ca_folder(settings)
    found = Authority.load(folder)
    print(f"the CA in {folder}")
    _print(found)
    prepared = authority.prepared(folder)
    for root in authority.roots(authority.trusted(folder)):
        if root.fingerprint != found.fingerprint:
            word = "prepared" if root == prepared else "trusted too"
            print(f"  {word:<13}  {root.fingerprint}")
            print(f"{'':17}for {', '.join(root.hosts)} until {authority.day(root.not_after)}")
    hosts = set(settings.intercepted_hosts)
    missing, more = sorted(hosts - found.hosts), sorted(found.hosts - hosts)
    if missing:
        print(f"It does not cover {', '.join(missing)}: warmproxy ca rotate makes one that does.")
    else:
        print("It covers all hosts that the settings intercept.")
    if more:
        print(f"Not intercepted any more: {', '.join(more)}; warmproxy ca rotate leaves them out.")
    return 1 if missing else 0


def export(settings: Settings, to: str | None, form: Format, *, force: bool) -> int:
    """Write what clients are to trust to the file `to`, or stdout; `split` to the folder `to`.

    Returns 0. Raises ConfigError, StartError: also where a file is there that says something else.
    """
    trusted = authority.trusted(ca_folder(settings))
    if form == "split":
        folder = Path(to or ".")
        for root in authority.roots(trusted):
            file = folder / f"{trust.nickname(root.fingerprint)}.crt"
            _write(file, root.pem, force=force)
            print(file)
        return 0
    match form:
        case "der":
            data = ssl.PEM_cert_to_DER_cert(authority.roots(trusted)[0].pem.decode())
        case "java":
            data = authority.java_truststore(trust.system_bundle() + trusted)
        case "with-system":
            data = trust.system_bundle() + trusted
        case "pem":
            data = trusted
    if to is None:
        sys.stdout.buffer.write(data)
    else:
        _write(Path(to), data, force=force)
    return 0


def trust_help(settings: Settings, client: str | None) -> int:
    """Print what a client, or each, needs. Returns 0. Raises ConfigError, StartError."""
    folder = ca_folder(settings)
    root = authority.prepared(folder) or authority.roots(authority.trusted(folder))[0]
    urls = [f"{upstream.url.rstrip('/')}/" for upstream in settings.upstream if upstream.intercept]
    print(trust.instructions(folder, root, urls[0] if urls else "https://HOST/", client))
    return 0


def _wanted(settings: Settings) -> Iterable[str]:
    hosts = settings.intercepted_hosts
    if not hosts:
        raise ConfigError(
            [
                "no [[upstream]] is intercepted, so there is nothing for a CA to speak for; "
                "below the url of one, say\nintercept = true"
            ]
        )
    return hosts


def _print(made: Authority) -> None:
    print(f"  speaks for     {', '.join(sorted(made.hosts))}")
    print(f"  until          {authority.day(made.not_after)}")
    print(f"  SHA-256        {made.fingerprint}")


def _write(file: Path, data: bytes, *, force: bool) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            if file.read_bytes() == data:
                return
        except FileNotFoundError:
            pass
        else:
            if not force:
                raise StartError(f"{file} is there already and says something else (see --force)")
        file.write_bytes(data)
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from error
