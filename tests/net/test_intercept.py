"""The certificates that clients of intercepted origins get: one for each host, and fresh."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from warmproxy.net.authority import LEAF_SECONDS, TRUST, Authority, create, rotate
from warmproxy.net.intercept import RENEW_BEFORE, Leaves, server_context

HOSTS = ["a.example", "192.0.2.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "ca", HOSTS, now=time.time(), days=30)
    return tmp_path / "ca"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


async def test_a_certificate_serves_until_it_is_due_and_then_there_is_another(folder: Path) -> None:
    clock = Clock()
    leaves = Leaves(Authority.load(folder), clock=clock)
    leaves.prepare("a.example")
    first = await leaves.get("a.example")
    clock.now += LEAF_SECONDS - RENEW_BEFORE - 60
    assert await leaves.get("a.example") is first
    clock.now += 120
    second = await leaves.get("a.example")
    assert second is not first
    assert await leaves.get("a.example") is second


async def test_the_last_certificate_of_an_authority_serves_to_its_end(folder: Path) -> None:
    """There is none that would last longer."""
    clock = Clock()
    leaves = Leaves(Authority.load(folder), clock=clock)
    clock.now = leaves.not_after - 3600
    last = await leaves.get("a.example")
    clock.now = leaves.not_after - 60
    assert await leaves.get("a.example") is last


async def test_many_who_ask_at_once_get_one_that_is_good(folder: Path) -> None:
    leaves = Leaves(Authority.load(folder))
    contexts = await asyncio.gather(*(leaves.get("192.0.2.1") for _ in range(20)))
    for context in contexts:
        shake(folder, context, "192.0.2.1")


async def test_an_authority_that_has_expired_signs_nothing(folder: Path) -> None:
    clock = Clock()
    leaves = Leaves(Authority.load(folder), clock=clock)
    clock.now += 31 * 86400
    with pytest.raises(ValueError, match="expired"):
        await leaves.get("a.example")


async def test_a_reload_keeps_the_certificates_of_the_same_authority(folder: Path) -> None:
    before = Leaves(Authority.load(folder))
    before.prepare("a.example")
    kept = await before.get("a.example")
    assert await Leaves(Authority.load(folder), before).get("a.example") is kept
    rotate(folder, HOSTS, now=time.time(), days=30)
    after = Leaves(Authority.load(folder), before)
    after.prepare("a.example")
    assert await after.get("a.example") is not kept


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_authority_is_satisfied(
    folder: Path, host: str, version: ssl.TLSVersion
) -> None:
    context = server_context(host, Authority.load(folder).leaf(host, time.time()).pem)
    tls = shake(folder, context, host, version)
    assert (tls.version(), tls.selected_alpn_protocol()) == (
        {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name],
        "http/1.1",
    )


@pytest.mark.parametrize("asked", ["b.example", "www.a.example"])
def test_who_asks_for_another_name_gets_an_alert(folder: Path, asked: str) -> None:
    context = server_context("a.example", Authority.load(folder).leaf("a.example", time.time()).pem)
    with pytest.raises(ssl.SSLError, match=r"(?i)callback"):
        shake(folder, context, asked)


def shake(
    folder: Path, server: ssl.SSLContext, name: str, version: ssl.TLSVersion | None = None
) -> ssl.SSLObject:
    """Both handshakes, in memory, of a client that trusts nobody else."""
    client = ssl.create_default_context(cafile=folder / TRUST)
    client.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        client.minimum_version = client.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=name)
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in (ours, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return ours
