"""TLS profile -> SSLContext, by urllib3's defaults. The door for `create_urllib3_context`."""

import os
import ssl
import sys
import time
from typing import Any

from warmproxy.errors import StartError
from warmproxy.settings import TlsProfile

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

LOSES_SESSIONS = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
"""Whether Python keeps 7 KB for good each time that a session is read (CPython's issue 116810):
once a second from one origin are 24 MB an hour."""

REMEMBER_EVERY = 60.0 if LOSES_SESSIONS else 1.0
"""Seconds between two looks for a session: of one name, or of all where a look costs memory."""

SESSIONS = 1000
"""Sessions remembered for resumption, one per server name."""


class Context:
    """The SSLContext of one profile, and the sessions that its later handshakes may resume.

    asyncio's TLS has no parameter for a session, so the context's `wrap_bio`, which every loop
    calls for each connection, puts it in.
    """

    def __init__(self, profile: TlsProfile) -> None:
        self.ssl = make_context(profile)
        self._sessions: dict[str, ssl.SSLSession] = {}
        self._looked_at: dict[str, float] = {}
        plain = self.ssl.wrap_bio

        def wrap_bio(
            incoming: ssl.MemoryBIO,
            outgoing: ssl.MemoryBIO,
            server_side: bool = False,
            server_hostname: str | bytes | None = None,
            session: ssl.SSLSession | None = None,
        ) -> ssl.SSLObject:
            session = session or self._sessions.get(str(server_hostname))
            return plain(incoming, outgoing, server_side, server_hostname, session)

        self.ssl.wrap_bio = wrap_bio  # type: ignore[method-assign]

    def remember(self, tls: ssl.SSLObject | None) -> None:
        """Keep the session of a connection that has been in use: by then its tickets are there.

        Once a second is enough for the dials beyond the pool, and to read a session takes 0.13 ms
        (measured): at each release it made a burst of 50 wait 0.13 round trips of 40 ms. Where it
        costs memory as well, it is for names whose session is not taken (any more).
        """
        if tls is None or (LOSES_SESSIONS and tls.session_reused):
            return
        now, name = time.monotonic(), str(tls.server_hostname)
        turn = "" if LOSES_SESSIONS else name
        if now - self._looked_at.get(turn, -REMEMBER_EVERY) < REMEMBER_EVERY:
            return
        if max(len(self._looked_at), len(self._sessions)) >= SESSIONS:
            self._looked_at.clear()
            self._sessions.clear()
        self._looked_at[turn] = now
        if (session := tls.session) is None or not session.has_ticket:
            return
        self._sessions[name] = session


class Contexts:
    """One Context per profile. Those that name files are made at the start, so that a wrong one is
    told then; the others when they are needed (25 ms and 2 MiB with the system's authorities).

    `before`: those of the settings so far; a profile whose files are as they were keeps its own.
    `renewed` are the names of those whose files are not. Raises StartError.
    """

    def __init__(self, profiles: list[TlsProfile], before: "Contexts | None" = None) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._files = {name: _files(profile) for name, profile in self._profiles.items()}
        known = {} if before is None else before._files
        same = {name for name, files in self._files.items() if known.get(name) == files}
        self.renewed = (self._files.keys() & known.keys()) - same
        self._made: dict[str, Context] = {}
        if before is not None:
            self._made = {name: made for name, made in before._made.items() if name in same}
        for name, profile in self._profiles.items():
            if profile.ca_file or profile.crl_file or profile.client_cert:
                self.make(name)

    def make(self, name: str) -> Context:
        """The profile's context, now. Raises StartError where a file cannot be used."""
        if name not in self._made:
            self._made[name] = Context(self._profiles[name])
        return self._made[name]

    def __getitem__(self, name: str | None) -> Context:
        return self.make(name or "")


def _files(profile: TlsProfile) -> tuple[tuple[object, ...], ...]:
    """What tells whether a profile's files are still those that were read."""
    system = ssl.get_default_verify_paths()
    trusted = (profile.ca_file,) if profile.ca_file else (system.cafile, system.capath)
    found = []
    for path in filter(None, (*trusted, profile.crl_file, profile.client_cert, profile.client_key)):
        try:
            now = os.stat(path)
        except OSError:
            continue  # make_context says what is wrong with it
        found.append((path, now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


def make_context(profile: TlsProfile) -> ssl.SSLContext:
    """Certificates and names verified (RFC 9110, 4.3.4), never by common name; ALPN http/1.1.

    Raises StartError where a file cannot be used.
    """
    # here, because it takes 45 ms and 4 MiB, and who only tunnels never needs it
    from urllib3.util.ssl_ import create_urllib3_context

    context: Any = create_urllib3_context(
        ssl_minimum_version=_MINIMUM[profile.minimum],
        cert_reqs=ssl.CERT_REQUIRED,
    )
    assert isinstance(context, ssl.SSLContext)
    context.set_alpn_protocols(["http/1.1"])
    context.options &= ~ssl.OP_NO_TICKET  # without tickets TLS 1.2 has nothing to resume by
    context.hostname_checks_common_name = False
    context.check_hostname = profile.verify
    context.verify_mode = ssl.CERT_REQUIRED if profile.verify else ssl.CERT_NONE
    try:
        if profile.ca_file:
            context.load_verify_locations(profile.ca_file)
        else:
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"ca_file {profile.ca_file}: {_why(error)}") from error
    if profile.crl_file:
        try:
            context.load_verify_locations(profile.crl_file)
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"crl_file {profile.crl_file}: {_why(error)}") from error
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if profile.client_cert:
        try:
            context.load_cert_chain(profile.client_cert, profile.client_key or None, _no_password)
        except (OSError, ssl.SSLError) as error:
            key = f" with client_key {profile.client_key}" if profile.client_key else ""
            raise StartError(f"client_cert {profile.client_cert}{key}: {_why(error)}") from error
    return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal, where a daemon has nobody."""
    return ""


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):  # OpenSSL gives a wrong file no reason, or a code
        why = (error.reason or "a certificate or its key is missing").lower().replace("_", " ")
        return f"no PEM that can be used: {why}"
    return error.strerror or str(error)
