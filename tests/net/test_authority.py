"""The authority of interception: what it says of itself, what it refuses, and its folder."""

import datetime
import os
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from warmproxy.errors import StartError
from warmproxy.net import authority, private
from warmproxy.net.authority import DAY, LEAF_SECONDS, Authority, create, prepare, rotate

HOSTS = ("api.example.com", "example.com", "10.0.0.7", "2001:db8::7", "localhost")
NOW = time.time()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ca"


@pytest.fixture
def made(folder: Path) -> Authority:
    return create(folder, HOSTS, now=NOW, days=90)


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(StartError) as caught:
        what()
    return str(caught.value)


def held(file: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(file.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def shake(leaf: authority.Leaf, trust: Path, host: str) -> None:
    """A handshake in memory, as strict as OpenSSL can be."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    file = trust.parent / "leaf.pem"
    file.write_bytes(leaf.pem)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cafile=str(trust))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(a, b, server_hostname=host),
        server.wrap_bio(b, a, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert ends[0].version() == "TLSv1.3"


# -- whom it speaks for -------------------------------------------------------------------------


def test_what_it_covers(made) -> None:
    """Exactly the hosts, however they are written."""
    assert made.hosts == frozenset(HOSTS)
    covered = ("API.example.com", "10.0.0.7", "2001:DB8:0::7", "[2001:db8::7]")
    assert all(map(made.covers, covered))
    others = ("x.api.example.com", "other.example", "10.0.0.8", "::1", "", "no host", "[", "*")
    assert not any(map(made.covers, others))


@pytest.mark.parametrize("host", HOSTS)
def test_a_leaf(folder, made, host) -> None:
    """One host, two days, for servers only; and it chains, by the strictest rules."""
    leaf = Authority.load(folder).leaf(host.upper(), NOW)
    shake(leaf, folder / "trust.pem", host)
    certificate, issuer = held(folder / "leaf.pem")
    [name] = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert str(name.value) == host
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life == datetime.timedelta(hours=49)
    assert leaf.not_after == certificate.not_valid_after_utc.timestamp() == int(NOW + LEAF_SECONDS)
    assert certificate.issuer == issuer.subject


def test_each_leaf_is_new(made) -> None:
    one, other = (x509.load_pem_x509_certificate(made.leaf("localhost", NOW).pem) for _ in "12")
    assert one.serial_number != other.serial_number
    assert one.public_key() != other.public_key()


def test_no_leaf_outlives_its_authority(made) -> None:
    late = made.leaf("localhost", NOW + 90 * DAY - 60)
    assert late.not_after == made.not_after
    early = x509.load_pem_x509_certificate(made.leaf("localhost", made.not_before + 9).pem)
    assert early.not_valid_before_utc.timestamp() == made.not_before
    with pytest.raises(ValueError, match="has expired"):
        made.leaf("localhost", made.not_after)
    with pytest.raises(ValueError, match="does not speak for other"):
        made.leaf("other", NOW)


@pytest.mark.parametrize(
    ("hosts", "permitted", "excluded"),
    [
        (
            ("b.example", "a.example"),
            "DNS:a.example, DNS:b.example, email:warmproxy.invalid, URI:warmproxy.invalid",
            "DNS:.a.example, DNS:.b.example, IP:0.0.0.0/0, IP:::/0",
        ),
        (
            ("10.0.0.7",),
            "DNS:warmproxy.invalid, IP:10.0.0.7/32, IP:2001:db8:ffff::ffff/128, "
            "email:warmproxy.invalid, URI:warmproxy.invalid",
            "DNS:.warmproxy.invalid",
        ),
        (
            ("::1", "a.example"),
            "DNS:a.example, IP:198.51.100.255/32, IP:::1/128, email:warmproxy.invalid, "
            "URI:warmproxy.invalid",
            "DNS:.a.example",
        ),
    ],
)
def test_the_constraints(folder, hosts, permitted, excluded) -> None:
    """Of the root and of what signs: critical, and something of every kind of name."""
    create(folder, hosts, now=NOW, days=90)
    kinds = {
        x509.DNSName: "DNS",
        x509.IPAddress: "IP",
        x509.RFC822Name: "email",
        x509.UniformResourceIdentifier: "URI",
    }
    for certificate in held(folder / "authority.pem"):
        names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert names.critical
        said = [
            ", ".join(f"{kinds[type(name)]}:{name.value}" for name in subtrees or ())
            for subtrees in (names.value.permitted_subtrees, names.value.excluded_subtrees)
        ]
        assert said == [permitted, excluded]


def test_hosts_below_others_have_a_certificate_of_their_own(folder) -> None:
    """Below the upper nothing is permitted, and the lower is below it."""
    hosts = ("example.com", "api.example.com", "v2.api.example.com", "other.example")
    create(folder, hosts, now=NOW, days=90)
    root, *signing = held(folder / "authority.pem")
    found = [
        [
            [name.value for name in subtrees if isinstance(name, x509.DNSName)]
            for subtrees in (names.permitted_subtrees or (), names.excluded_subtrees or ())
        ]
        for certificate in (root, *signing)
        for names in [certificate.extensions.get_extension_for_class(x509.NameConstraints).value]
    ]
    assert found == [
        [
            ["example.com", "other.example", "api.example.com", "v2.api.example.com"],
            [".other.example", ".v2.api.example.com"],
        ],
        [["example.com", "other.example"], [".example.com", ".other.example"]],
        [["api.example.com"], [".api.example.com"]],
        [["v2.api.example.com"], [".v2.api.example.com"]],
    ]


def test_the_root_cannot_sign_any_more(folder, made) -> None:
    """Its key is in no file; the one on disk is of what it signed."""
    key = serialization.load_pem_private_key((folder / "authority.pem").read_bytes(), None)
    root, *signing = held(folder / "authority.pem")
    assert root == held(folder / "trust.pem")[0]
    assert root.public_key() != key.public_key()
    assert {certificate.public_key() == key.public_key() for certificate in signing} == {True}
    assert (folder / "authority.pem").read_bytes().count(b"PRIVATE KEY") == 2  # begin and end
    assert made.certificate == (folder / "trust.pem").read_bytes()
    assert made.fingerprint == root.fingerprint(hashes.SHA256()).hex(":").upper()


# -- its folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_can_read_it_at_any_moment(folder, mask, monkeypatch) -> None:
    """Whatever the umask: the modes are seen as the files are made, before anything is in them."""
    seen = []
    real = os.open

    def watched(path: str, flags: int, *args: int, **more: int) -> int:
        fd = real(path, flags, *args, **more)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            seen.append((Path(path).name.split(".")[1], stat.S_IMODE(os.fstat(fd).st_mode)))
        return fd

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(mask)
    try:
        create(folder, HOSTS, now=NOW, days=90)
        prepare(folder, HOSTS, now=NOW, days=90)
        rotate(folder, HOSTS, now=NOW, days=90)
    finally:
        os.umask(before)
    assert {found for name, found in seen if name in ("authority", "next")} == {0o600}
    assert mode(folder / "authority.pem") == 0o600
    assert mode(folder) == 0o700
    assert sorted(file.name for file in folder.iterdir()) == ["authority.pem", "trust.pem"]


def test_never_over_an_existing_one(folder, made) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    said = refusal(lambda: create(folder, HOSTS, now=NOW, days=90))
    assert said == (
        f"there is a CA in {folder} already, and it stays: warmproxy ca rotate replaces it"
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_nothing_to_speak_for(folder) -> None:
    said = refusal(lambda: create(folder, [], now=NOW, days=90))
    assert said == "there is no host for a CA to speak for"
    assert list(folder.iterdir()) == []


def test_without_the_library() -> None:
    """Who asks for interception is told what it takes; who does not needs nothing of it."""
    script = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "import warmproxy.service, warmproxy.cli\n"
        "from warmproxy.errors import StartError\n"
        "try:\n"
        "    import warmproxy.net.authority\n"
        "except StartError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ran.stdout, ran.stderr) == (
        "intercept and warmproxy ca need the library cryptography: "
        "pip install 'warmproxy[intercept]'\n",
        "",
    )


# -- what is not loaded -------------------------------------------------------------------------


def test_none(folder) -> None:
    said = f"no CA in {folder}: make one with warmproxy ca init"
    assert refusal(lambda: Authority.load(folder)) == said
    assert refusal(lambda: rotate(folder, HOSTS, now=NOW, days=90)) == said
    assert refusal(lambda: prepare(folder, HOSTS, now=NOW, days=90)) == said
    folder.mkdir(parents=True)
    assert refusal(lambda: Authority.load(folder)) == said
    assert refusal(lambda: rotate(folder, HOSTS, now=NOW, days=90)) == said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o602])
def test_a_key_that_others_reach(folder, made, bits) -> None:
    (folder / "authority.pem").chmod(bits)
    file = folder / "authority.pem"
    assert refusal(lambda: Authority.load(folder)) == (
        f"others can read or write {file}: chmod 600 {file}, and if somebody may have read it, "
        "warmproxy ca rotate --retire"
    )
    rotate(folder, HOSTS, now=NOW, days=90, retire=True)  # and that does help
    assert Authority.load(folder).fingerprint != made.fingerprint


def test_a_folder_that_others_write_to(folder, made) -> None:
    folder.chmod(0o770)
    said = f"others can write to {folder}: chmod 700 {folder}"
    assert refusal(lambda: Authority.load(folder)) == said
    folder.chmod(0o750)
    assert Authority.load(folder).hosts == made.hosts
    folder.chmod(0o777)
    (folder / "authority.pem").unlink()
    assert refusal(lambda: create(folder, HOSTS, now=NOW, days=90)) == said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["", "authority.pem"])
def test_what_belongs_to_somebody_else(folder, made, name) -> None:
    os.chown(folder / name, 12345, -1)
    assert refusal(lambda: Authority.load(folder)) == (
        f"{folder / name} belongs to another user: chown it to the one that warmproxy runs as"
    )


def test_what_is_no_file(folder, made) -> None:
    """A link may lead to what somebody else put there, and a pipe must not stop us."""
    file = folder / "authority.pem"
    file.rename(folder / "elsewhere")
    file.symlink_to("elsewhere")
    assert refusal(lambda: Authority.load(folder)).startswith(f"{file}: ")
    file.unlink()
    os.mkfifo(file, 0o600)
    assert refusal(lambda: Authority.load(folder)).startswith(f"{file} is no key of ours")


def test_before_and_after_its_time(folder) -> None:
    create(folder, HOSTS, now=NOW - 91 * DAY, days=90)
    file = folder / "authority.pem"
    said = refusal(lambda: Authority.load(folder))
    ends = datetime.datetime.fromtimestamp(NOW - DAY, datetime.UTC)
    assert said == (
        f"the CA in {file} expired on {ends:%Y-%m-%d %H:%M} UTC: make another one with "
        "warmproxy ca rotate"
    )
    rotate(folder, HOSTS, now=NOW + DAY, days=90)
    begins = datetime.datetime.fromtimestamp(NOW + DAY - 3600, datetime.UTC)
    assert refusal(lambda: Authority.load(folder)) == (
        f"the CA in {file} is not valid before {begins:%Y-%m-%d %H:%M} UTC: is the clock right?"
    )
    assert len(held(folder / "trust.pem")) == 1  # not the one that has expired


def changed(**parts: object) -> bytes:
    """What authority.pem would hold if somebody had made it otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.NameConstraints([x509.DNSName("a.example")], None)
    said = {
        "names": (names, True),
        "basic": (x509.BasicConstraints(True, 0), True),
        "usage": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    } | parts
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mine")])
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    day = datetime.timedelta(days=1)
    certificates = []
    for depth in (1, 0):
        builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now - day, now + day)
        for kind, extension in said.items():
            if extension is not None:
                value, critical = extension  # type: ignore[misc]
                if kind == "basic" and depth and value.path_length == 0:
                    value = x509.BasicConstraints(True, 1)
                builder = builder.add_extension(value, critical)
        certificates.append(builder.sign(key, hashes.SHA256()))
    pem = serialization.Encoding.PEM
    private_format = serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, private_format, serialization.NoEncryption()) + b"".join(
        certificate.public_bytes(pem) for certificate in certificates
    )


ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
WIDE = x509.NameConstraints([x509.DNSName("example")], None)
NO_CA = "its certificates are no CA with name constraints"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"names": None}, NO_CA),
        ({"basic": None}, NO_CA),
        ({"basic": (x509.BasicConstraints(False, None), True)}, "its certificates may sign other"),
        ({"basic": (x509.BasicConstraints(True, None), True)}, "its certificates may sign other"),
        ({"basic": (x509.BasicConstraints(True, 0), False)}, "its certificates may sign other"),
        ({"usage": None}, "its certificates may sign for more than TLS servers"),
        ({"usage": (ANY, False)}, "its certificates may sign for more than TLS servers"),
        ({"names": (WIDE, False)}, "its name constraints are not those for exactly its hosts"),
        ({"names": (WIDE, True)}, "its name constraints are not those for exactly its hosts"),
    ],
)
def test_what_could_speak_for_more(folder, made, parts, why) -> None:
    """We never sign with it, whoever made it."""
    (folder / "authority.pem").write_bytes(changed(**parts))
    said = refusal(lambda: Authority.load(folder))
    assert said.startswith(f"{folder / 'authority.pem'}: {why}")
    assert said.endswith(": make another one with warmproxy ca rotate")


def test_what_does_not_belong_together(folder, made, tmp_path) -> None:
    """Halves of two authorities."""
    create(tmp_path / "other", HOSTS, now=NOW, days=90)
    ours, theirs = (folder / "authority.pem"), (tmp_path / "other" / "authority.pem")
    end = b"-----END PRIVATE KEY-----\n"
    _, _, rest = ours.read_bytes().partition(end)
    other_key, _, other_rest = theirs.read_bytes().partition(end)
    remedy = ": make another one with warmproxy ca rotate"
    ours.write_bytes(other_key + end + rest)
    assert refusal(lambda: Authority.load(folder)) == (
        f"{ours}: its key and its certificates do not belong together{remedy}"
    )
    begin = b"-----BEGIN CERTIFICATE-----"
    root, signing = rest.split(begin)[1], other_rest.split(begin)[2:]
    ours.write_bytes(other_key + end + begin + begin.join([root, *signing]))
    assert refusal(lambda: Authority.load(folder)) == f"{ours}: {NO_CA}{remedy}"


@pytest.mark.parametrize("text", [b"", b"nonsense", b"\0" * 100])
def test_what_is_broken(folder, made, text) -> None:
    whole = (folder / "authority.pem").read_bytes()
    for broken in (text, whole[:300], whole[: len(whole) // 2], whole[400:]):
        (folder / "authority.pem").write_bytes(broken)
        said = refusal(lambda: Authority.load(folder))
        assert said == (
            f"{folder / 'authority.pem'} is no key of ours with its certificates: make another one "
            "with warmproxy ca rotate"
        )
    rotate(folder, HOSTS, now=NOW, days=90)  # and that does help
    assert Authority.load(folder).hosts == made.hosts


# -- rotation -----------------------------------------------------------------------------------


def fingerprints(folder: Path) -> list[str]:
    return [root.fingerprint for root in authority.roots(authority.trusted(folder))]


def test_rotation(folder, made) -> None:
    """The new one signs and is trusted first; what signed until now is trusted on."""
    other = rotate(folder, ("b.example",), now=NOW, days=10)
    assert fingerprints(folder) == [other.fingerprint, made.fingerprint]
    loaded = Authority.load(folder)
    assert (loaded.fingerprint, loaded.hosts) == (other.fingerprint, {"b.example"})
    shake(made.leaf("localhost", NOW), folder / "trust.pem", "localhost")
    shake(loaded.leaf("b.example", NOW), folder / "trust.pem", "b.example")
    third = rotate(folder, ("b.example",), now=NOW + 11 * DAY, days=90)
    assert fingerprints(folder) == [third.fingerprint, made.fingerprint]


def test_a_prepared_rotation(folder, made) -> None:
    """Clients can trust the next one before it signs."""
    after = prepare(folder, HOSTS, now=NOW, days=90)
    assert Authority.load(folder).fingerprint == made.fingerprint
    assert fingerprints(folder) == [made.fingerprint, after.fingerprint]
    assert mode(folder / "next.pem") == 0o600
    found = authority.prepared(folder)
    assert found is not None
    assert found.fingerprint == after.fingerprint
    assert rotate(folder, HOSTS, now=NOW, days=90).fingerprint == after.fingerprint
    assert Authority.load(folder).fingerprint == after.fingerprint
    assert fingerprints(folder) == [after.fingerprint, made.fingerprint]
    assert authority.prepared(folder) is None


def test_prepared_again(folder, made) -> None:
    """What was prepared first never signed, and is not trusted any more."""
    prepare(folder, HOSTS, now=NOW, days=90)
    after = prepare(folder, ("b.example",), now=NOW, days=90)
    assert fingerprints(folder) == [made.fingerprint, after.fingerprint]
    assert refusal(lambda: rotate(folder, HOSTS, now=NOW, days=90)) == (
        "what was prepared is for b.example, and that is not what is intercepted now: "
        "warmproxy ca rotate --prepare makes another one"
    )
    assert Authority.load(folder).fingerprint == made.fingerprint


def test_a_stolen_key(folder, made) -> None:
    """Nothing that was there is trusted any more, nor put to use."""
    after = prepare(folder, HOSTS, now=NOW, days=90)
    new = rotate(folder, HOSTS, now=NOW, days=90, retire=True)
    assert new.fingerprint not in (made.fingerprint, after.fingerprint)
    assert fingerprints(folder) == [new.fingerprint] == [Authority.load(folder).fingerprint]
    assert authority.prepared(folder) is None


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_rotation_that_fails_half_way(folder, made, is_prepared, monkeypatch) -> None:
    """Wherever it does, what is there signs, and clients trust it; a second try succeeds."""
    if is_prepared:
        prepare(folder, HOSTS, now=NOW, days=90)
    steps = [("fsync", n) for n in range(4)] + [("replace", n) for n in range(2)]
    failed = 0
    for name, allowed in steps:
        real = getattr(os, name)
        left = allowed

        def failing(*args: object, real: Callable[..., object] = real) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(private.os, name, failing)
            try:
                rotate(folder, HOSTS, now=NOW, days=90)
            except StartError as error:
                failed += str(error).endswith(": No space left on device")
        loaded = Authority.load(folder)
        shake(loaded.leaf("localhost", NOW), folder / "trust.pem", "localhost")
        shake(made.leaf("localhost", NOW), folder / "trust.pem", "localhost")
        (folder / "leaf.pem").unlink()
        assert {file.name for file in folder.iterdir()} <= {
            "authority.pem",
            "trust.pem",
            "next.pem",
        }
    assert failed >= 4
    assert rotate(folder, HOSTS, now=NOW, days=90).fingerprint == fingerprints(folder)[0]
