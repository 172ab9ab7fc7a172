"""`warmproxy bench` against origins on loopback."""

import json
import re

import pytest

from tests.e2e.harness import eventually, free_port
from tests.e2e.origins import Connection, Request


def parts(row) -> set[str]:
    """Which of its parts have a number."""
    return {name[:-3] for name, value in row.items() if name.endswith("_ms") and value is not None}


def test_each_way_to_an_https_origin(warmproxy_command, origin, authority) -> None:
    """Five ways, each asked so often, and those by proxy on connections that were there: the
    origin sees no more of them than were warm, or were refilled for a tunnel."""
    web = origin(tls=authority.server)
    ran = warmproxy_command(
        *("bench", f"{web.url}/page?q=1", "--count", "3", "--json"),
        *("--ca-file", str(authority.file)),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    said = json.loads(ran.stdout)
    assert (said["url"], said["count"], said["status"]) == (f"{web.url}/page?q=1", 3, 200)
    rows = {row["way"]: row for row in said["ways"]}
    assert list(rows) == ["cold", "keep-alive", "tunnel", "forwarded", "upgraded"]
    assert {row["requests"] for row in rows.values()} == {3}
    assert parts(rows["cold"]) == {"dns", "tcp", "tls", "first_byte", "total"}
    assert parts(rows["keep-alive"]) == {"first_byte", "total"}
    assert parts(rows["tunnel"]) == {"tcp", "tls", "first_byte", "total"}
    assert parts(rows["forwarded"]) == parts(rows["upgraded"]) == {"tcp", "first_byte", "total"}
    assert all(0 < row["total_ms"] < 5000 for row in rows.values())
    # beside those counted, one to begin with and one that opens the kept connection
    assert [r.target for r in web.requests] == ["/page?q=1"] * (5 * 3 + 2)
    assert len([r for r in web.requests if r.values("via")]) == 2 * 3, "forwarded and upgraded"
    web.wait_open(0)


def test_table(warmproxy_command, origin) -> None:
    """An http:// URL has three ways; without --json they are a table."""
    web = origin()
    ran = warmproxy_command("bench", web.url, "--count", "2")
    assert (ran.returncode, ran.stderr) == (0, "")
    head, empty, columns, *rows = ran.stdout.splitlines()
    assert head == f"{web.url}/: 2 requests each way, status 200; medians in ms"
    assert empty == ""
    assert columns.split() == ["DNS", "TCP", "TLS", "FIRST", "BYTE", "TOTAL"]
    number = r"\d+\.\d\d"
    for row, shape in zip(
        rows,
        [
            f"cold {number} {number} - {number} {number}",
            f"keep-alive - - - {number} {number}",
            f"forwarded - {number} - {number} {number}",
        ],
        strict=True,
    ):
        assert re.fullmatch(shape, " ".join(row.split())), ran.stdout


def test_a_way_that_does_not_work(warmproxy_command, origin) -> None:
    """An origin that closes after each answer has no keep-alive; the others are measured."""

    def answer(connection: Connection, request: Request) -> None:
        connection.close_after = True
        connection.reply(b"once")

    web = origin(answer)
    ran = warmproxy_command("bench", web.url, "--count", "1", "--json")
    assert ran.returncode == 1
    assert "keep-alive: the origin closes its connections after each answer" in ran.stderr
    rows = {row["way"]: row for row in json.loads(ran.stdout)["ways"]}
    assert rows["keep-alive"]["requests"] == 0
    assert "closes" in rows["keep-alive"]["error"]
    assert rows["forwarded"]["requests"] == 1


def test_origins_that_do_not_answer(warmproxy_command, origin, authority) -> None:
    """Nobody there, or nobody to be trusted: one line, and no daemon is started for it."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    ran = warmproxy_command("bench", nobody)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"warmproxy bench: {nobody}: ")
    assert len(ran.stderr.splitlines()) == 1
    web = origin(tls=authority.server)
    ran = warmproxy_command("bench", web.url)
    assert ran.returncode == 1
    assert "the certificate is not to be trusted" in ran.stderr
    assert ran.stdout == ""
    eventually(lambda: not web.open_connections())
    assert web.requests == []
    assert len(web.connections) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("ftp://h/",), "must be http://... or https://..., not 'ftp://h/'"),
        (("http://a:b@h/",), "without a user or password"),
        (("http://h/", "--count", "0"), "must be from 1 to 100, not '0'"),
        (("http://h/", "--cuont", "1"), "unknown option '--cuont'; did you mean '--count'?"),
        ((), "required: URL"),
    ],
)
def test_wrong_usage(warmproxy_command, args, says) -> None:
    ran = warmproxy_command("bench", *args)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr


def test_wrong_ca_file(warmproxy_command) -> None:
    ran = warmproxy_command("bench", "https://127.0.0.1:1/", "--ca-file", "not-there.pem")
    assert ran.returncode == 1
    assert ran.stderr == "warmproxy: not-there.pem: No such file or directory\n"
