"""TLS profiles: what the contexts that are made of them insist on."""

import ssl
from pathlib import Path

import pytest
import trustme

from warmproxy.errors import StartError
from warmproxy.net import tls
from warmproxy.net.tls import REMEMBER_EVERY, SESSIONS, Context, Contexts, make_context
from warmproxy.settings import TlsProfile


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, me.crt and me.key, both.pem, other.key and wrong.pem."""
    folder = tmp_path_factory.mktemp("files")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    me = ca.issue_cert("me.example")
    me.cert_chain_pems[0].write_to_path(str(folder / "me.crt"))
    me.private_key_pem.write_to_path(str(folder / "me.key"))
    me.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    ca.issue_cert("other.example").private_key_pem.write_to_path(str(folder / "other.key"))
    (folder / "wrong.pem").write_text("no certificate\n")
    return folder


def shake(client: ssl.SSLObject, server: ssl.SSLObject) -> None:
    """Both handshakes, in memory."""
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass


def pair(
    context: ssl.SSLContext, server: ssl.SSLContext, name: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Two ends that are joined, as the loop would make ours."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(back, there, server_hostname=name)
    return ours, server.wrap_bio(there, back, server_side=True)


def serving(ca: trustme.CA, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    ca.issue_cert("a.example", "b.example").configure_cert(context)
    return context


def test_the_default_profile_verifies() -> None:
    """Certificate and name are demanded, never by common name, and TLS is 1.2 or newer."""
    context = make_context(TlsProfile())
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname is True
    assert context.hostname_checks_common_name is False
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not context.options & ssl.OP_NO_TICKET


def test_a_minimum_of_1_3() -> None:
    assert make_context(TlsProfile(minimum="1.3")).minimum_version == ssl.TLSVersion.TLSv1_3


def test_verify_false_is_the_only_way_out() -> None:
    context = make_context(TlsProfile(verify=False))
    assert context.verify_mode == ssl.CERT_NONE
    assert context.check_hostname is False


def test_alpn_is_http_1_1_alone(ca, files) -> None:
    """A server that prefers h2 is never offered it."""
    context = make_context(TlsProfile(ca_file=str(files / "ca.pem")))
    ours, theirs = pair(context, serving(ca), "a.example")
    shake(ours, theirs)
    assert theirs.selected_alpn_protocol() == ours.selected_alpn_protocol() == "http/1.1"


def test_a_ca_file_is_trusted_instead_of_the_systems(ca, files) -> None:
    """Its certificates are the only ones in the store."""
    context = make_context(TlsProfile(ca_file=str(files / "ca.pem")))
    assert len(context.get_ca_certs()) == 1
    ours, theirs = pair(make_context(TlsProfile()), serving(ca), "a.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ca_file": "none.pem"}, "ca_file {}/none.pem: No such file"),
        ({"ca_file": "wrong.pem"}, "ca_file {}/wrong.pem: no PEM"),
        ({"client_cert": "none.pem"}, "client_cert {}/none.pem: No such file"),
        ({"client_cert": "wrong.pem"}, "client_cert {}/wrong.pem: no PEM"),
        ({"client_cert": "me.crt"}, "client_cert {}/me.crt: no PEM"),
        (
            {"client_cert": "me.crt", "client_key": "none.key"},
            "client_cert {0}/me.crt with client_key {0}/none.key: No such file",
        ),
        (
            {"client_cert": "me.crt", "client_key": "other.key"},
            "client_cert {0}/me.crt with client_key {0}/other.key: no PEM that can be used: key",
        ),
    ],
)
def test_a_file_that_cannot_be_used(files, settings, says) -> None:
    """One line that names setting and file, when the contexts are made."""
    profile = TlsProfile(**{name: str(files / file) for name, file in settings.items()})
    with pytest.raises(StartError) as raised:
        Contexts([TlsProfile(), profile])
    assert str(raised.value).startswith(says.format(files))
    assert "\n" not in str(raised.value)


def test_certificate_and_key_in_one_file_or_two(files) -> None:
    make_context(TlsProfile(client_cert=str(files / "both.pem")))
    make_context(TlsProfile(client_cert=str(files / "me.crt"), client_key=str(files / "me.key")))


def test_contexts_are_found_by_their_profiles_names(files) -> None:
    """Equal profiles share one context, others have their own."""
    careless = TlsProfile(verify=False)
    contexts = Contexts([TlsProfile(), careless, TlsProfile()])
    assert contexts[TlsProfile().name] is not contexts[careless.name]
    assert contexts[careless.name].ssl.verify_mode == ssl.CERT_NONE
    with pytest.raises(KeyError):
        contexts[TlsProfile(ca_file=str(files / "ca.pem")).name]


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_resumed_for_its_name_only(ca, files, version) -> None:
    """What is remembered of a connection that was in use serves the next handshake of that name."""
    context = Context(TlsProfile(ca_file=str(files / "ca.pem")))
    server = serving(ca, version)
    ours, theirs = pair(context.ssl, server, "a.example")
    shake(ours, theirs)
    theirs.write(b"an answer")
    assert ours.read() == b"an answer"
    context.remember(ours)
    for name, resumed in (("a.example", True), ("b.example", False)):
        again, other = pair(context.ssl, server, name)
        shake(again, other)
        assert again.session_reused is resumed


def test_nothing_is_remembered_without_a_session() -> None:
    """A connection without TLS, or whose handshake never came to its end, is no error."""
    context = Context(TlsProfile())
    context.remember(None)
    context.remember(context.ssl.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="a"))
    assert context._sessions == {}


def test_sessions_are_bounded(ca, files) -> None:
    """Beyond SESSIONS names the memory begins anew."""
    context = Context(TlsProfile(ca_file=str(files / "ca.pem")))
    ours, theirs = pair(context.ssl, serving(ca, ssl.TLSVersion.TLSv1_2), "a.example")
    shake(ours, theirs)
    session = ours.session
    assert session is not None
    context._sessions.update({str(n): session for n in range(SESSIONS)})
    context._looked_at.update({str(n): 0.0 for n in range(SESSIONS)})
    context.remember(ours)
    assert list(context._sessions) == ["a.example"]


def test_a_session_is_looked_for_once_a_second(ca, files, monkeypatch) -> None:
    """Reading one takes longer than all else that a release does, so most releases read none."""
    monkeypatch.setattr(tls, "LOSES_SESSIONS", False)
    context = Context(TlsProfile(ca_file=str(files / "ca.pem")))
    ours, theirs = pair(context.ssl, serving(ca, ssl.TLSVersion.TLSv1_2), "a.example")
    shake(ours, theirs)
    context.remember(ours)
    context._sessions.clear()
    context.remember(ours)
    assert context._sessions == {}
    context._looked_at["a.example"] -= REMEMBER_EVERY
    context.remember(ours)
    assert list(context._sessions) == ["a.example"]


def test_where_a_look_costs_memory_it_is_for_who_has_no_session(ca, files, monkeypatch) -> None:
    """Python 3.11 loses 7 KB at each look: one for all names in a while, and none where the session
    that is kept was taken."""
    monkeypatch.setattr(tls, "LOSES_SESSIONS", True)
    context, server = Context(TlsProfile(ca_file=str(files / "ca.pem"))), serving(ca, VERSIONS[0])

    def used(name: str) -> None:
        ours, theirs = pair(context.ssl, server, name)
        shake(ours, theirs)
        context.remember(ours)

    used("a.example")
    kept = context._sessions["a.example"]
    used("b.example")
    assert context._sessions == {"a.example": kept}
    for _ in range(2):
        context._looked_at[""] -= REMEMBER_EVERY
        used("a.example")
        assert context._sessions["a.example"] is kept
        used("b.example")
    assert context._sessions.keys() == {"a.example", "b.example"}


def test_contexts_are_made_when_they_are_needed_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 upstreams of one profile have one context, made when the first of them is dialled."""
    made: list[TlsProfile] = []

    def make(profile: TlsProfile) -> ssl.SSLContext:
        made.append(profile)
        return make_context(profile)

    monkeypatch.setattr("warmproxy.net.tls.make_context", make)
    contexts = Contexts([TlsProfile() for _ in range(1000)])
    assert made == []
    name = TlsProfile().name
    assert contexts[name] is contexts[name]
    assert made == [TlsProfile()]
