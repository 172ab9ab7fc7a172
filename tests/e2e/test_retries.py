"""What is sent a second time, and what never is (RFC 9110, 9.2.2), counted at the origin."""

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.daemon import fetch_on, read_reply
from tests.e2e.harness import at, eventually
from tests.e2e.origins import Gone, usual
from tests.e2e.test_limits import own_answer

RETRIED = "warmproxy; retried"
ENDS = ("fin", "reset")

IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
NEVER_TWICE = ("POST", "PATCH", "LOCK")


def end(connection, how: str) -> None:
    """End a connection that has read a request: with a FIN, or with a reset."""
    if how == "reset":
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection._reset = True
    raise Gone


def dies_when_used(how: str = "fin", *, after: bytes = b"", read: bool = True):
    """An answer: the first request of a connection gets its due, a later one is read and the
    connection ended after the bytes `after`."""

    def answer(connection, request) -> None:
        if request.nth == 1:
            usual(connection, request)
            return
        if read:
            connection.read_body(request)
        if after:
            connection.send(after)
        end(connection, how)

    return answer


def retries(proxy, reason: str = "stale") -> float:
    return proxy.count("warmproxy_retries_total", reason=reason)


def use_up(proxy, web) -> None:
    """Leave used connections only: no fresh one is there for a request that would rather."""
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/use").status == 200
    client.close()


def end_idle(proxy, web) -> None:
    """The next request finds no connection."""
    for connection in web.open_connections():
        connection.fin()
    web.wait_open(0)
    # the daemon may yet have to see it
    eventually(lambda: all(pool["fresh"] + pool["used"] == 0 for pool in proxy.pools().values()))


# -- not idempotent ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ENDS)
def test_what_is_not_idempotent_is_never_sent_twice(warmproxy, origin, how) -> None:
    """POST, PATCH and methods that nobody knows, lost on a used connection, are a 502 that says
    that their fate is unknown; the origin saw each once."""
    web = origin(dies_when_used(how))
    proxy = warmproxy(config={"learn_requests": 0})
    for method in NEVER_TWICE:
        use_up(proxy, web)
        reply = proxy.fetch(f"{web.url}/{method}", method, b"once")
        own_answer(reply, 502, "connection_terminated")
        assert "whether it was applied is not known" in reply.text
        assert ("reset" if how == "reset" else "closed") in reply.text
        lost = [r for r in web.requests if r.target == f"/{method}"]
        assert [(r.nth, bytes(r.body)) for r in lost] == [(2, b"once")]
    assert proxy.count("warmproxy_retries_total") == 0


def test_a_post_takes_a_fresh_connection_while_there_is_one(warmproxy, origin) -> None:
    """With used and fresh connections idle, POSTs go out on the fresh ones and GETs on used
    ones."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    use_up(proxy, web)
    eventually(lambda: proxy.pool(web.url)["fresh"] == 2, says=proxy.pools)
    for n in (1, 2):
        assert proxy.fetch(f"{web.url}/{n}", "POST", b"x").status == 200
        assert proxy.fetch(f"{web.url}/{n}").status == 200
    nths = [(r.method, r.nth > 1) for r in web.requests[1:]]
    assert nths == [("POST", False), ("GET", True)] * 2


# -- idempotent -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ENDS)
def test_idempotent_requests_are_sent_once_more(warmproxy, origin, how) -> None:
    """Each idempotent method, lost on a used connection before a byte of its answer, is sent
    once more on a fresh connection; the answer says so, and it is counted."""
    web = origin(dies_when_used(how))
    proxy = warmproxy(config={"learn_requests": 0})
    for n, method in enumerate(IDEMPOTENT, 1):
        use_up(proxy, web)
        body = b"twice" if method == "PUT" else None
        reply = proxy.fetch(f"{web.url}/{method}", method, body)
        assert (reply.status, reply.headers["Proxy-Status"]) == (200, RETRIED), method
        tries = [(r.nth, bytes(r.body)) for r in web.requests if r.target == f"/{method}"]
        assert tries == [(2, body or b""), (1, body or b"")]
        assert retries(proxy) == n
        end_idle(proxy, web)
    assert proxy.count("warmproxy_retries_total") == len(IDEMPOTENT)
    assert proxy.fetch(f"{web.url}/plain").headers["Proxy-Status"] is None


def test_one_more_try_and_no_third(warmproxy, origin) -> None:
    """A request whose second try is lost as well is a 502 that says that it was tried twice."""

    def answer(connection, request) -> None:
        if request.target == "/lost":
            end(connection, "fin")
        usual(connection, request)

    web = origin(answer)
    proxy = warmproxy("--warm", f"{web.url}=3")
    use_up(proxy, web)
    reply = proxy.fetch(f"{web.url}/lost")
    own_answer(reply, 502, "connection_terminated")
    assert "retried" in reply.headers["Proxy-Status"].split("; ")
    assert [r.nth for r in web.requests if r.target == "/lost"] == [2, 1]
    assert retries(proxy) == 1


def test_a_fresh_connection_that_dies_is_no_race(warmproxy, origin) -> None:
    """A GET whose fresh connection dies is not sent again: that is the upstream's fault, and a
    502 says so."""
    web = origin(lambda connection, request: end(connection, "fin"))
    proxy = warmproxy("--warm", f"{web.url}=2")
    own_answer(proxy.fetch(f"{web.url}/"), 502, "connection_terminated")
    assert len(web.requests) == 1
    assert retries(proxy) == 0


@pytest.mark.parametrize(("chunked", "fits"), [(False, 10_000), (True, 9_900)])
def test_a_body_is_replayed_byte_for_byte_within_max_buffer(
    warmproxy, origin, chunked, fits
) -> None:
    """A PUT whose body (its chunks' sizes included) fits into max_buffer arrives whole at the
    second try; where it does not, the answer is a 502 and no half body is sent."""
    web = origin(dies_when_used())
    proxy = warmproxy(config={"learn_requests": 0, "max_buffer": 10_000})
    for size, status in ((fits, 200), (10_001, 502), (200_000, 502)):
        use_up(proxy, web)
        body = bytes(n * 7 % 251 for n in range(size))
        client = proxy.connect()
        if chunked:
            parts = (body[n : n + 999] for n in range(0, size, 999))
            headers = {"Transfer-Encoding": "chunked"}
            client.request("PUT", f"{web.url}/{size}", parts, headers, encode_chunked=True)
        else:
            client.request("PUT", f"{web.url}/{size}", body)
        reply = read_reply(client)
        client.close()
        assert reply.status == status, (size, reply)
        tries = [r for r in web.requests if r.target == f"/{size}"]
        assert [bytes(r.body) for r in tries] == [body] * (2 if status == 200 else 1)
        end_idle(proxy, web)
    assert retries(proxy) == 1


@pytest.mark.parametrize("how", ENDS)
def test_never_after_a_byte_of_the_answer(warmproxy, origin, how) -> None:
    """Once a byte has come back, an interim answer included, nothing is sent again."""
    said, arrived = threading.Event(), threading.Event()
    after = b""

    def answer(connection, request) -> None:
        if request.nth == 1:
            return usual(connection, request)
        connection.send(after)
        said.set()
        assert arrived.wait(10)
        return end(connection, how)

    web = origin(answer)
    proxy = warmproxy(config={"learn_requests": 0})
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    for after in (b"H", b"HTTP/1.1 200 OK\r\nContent-", interim):
        said.clear()
        arrived.clear()
        use_up(proxy, web)
        before = len(web.requests)
        with proxy.raw() as client:
            head = f"GET {web.url}/cut HTTP/1.1\r\nHost: {web.authority}\r\n\r\n"
            client.sendall(head.encode())
            cut = web.wait_requests(before + 1)[-1].connection
            # an end must not overtake the byte, which is in the proxy once the kernel holds none
            eventually(lambda cut=cut: said.is_set() and unread(cut) == 0)
            arrived.set()
            answered = b""
            while b"error=connection_terminated" not in answered and (data := client.recv(4096)):
                answered += data
        own = answered.partition(b"\r\n\r\n")[2] if after == interim else answered
        assert own.startswith(b"HTTP/1.1 502 "), answered
        assert b"error=connection_terminated" in own
        assert len(web.requests) == before + 1
    assert proxy.count("warmproxy_retries_total") == 0


def unread(connection) -> int:
    """Bytes that the proxy's end of a connection has received and not read."""
    port = connection._sock.getpeername()[1]
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[2].endswith(
                f":{connection.origin.port:04X}"
            ):
                return int(fields[4].partition(":")[2], 16)
    return -1


def test_an_answer_cut_in_its_body_is_cut_for_the_client(warmproxy, origin) -> None:
    """An upstream that dies within its answer's body is no reason to ask again: the client gets
    what came and sees that it is not whole."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    web = origin(dies_when_used(after=head))
    proxy = warmproxy("--warm", f"{web.url}=2")
    use_up(proxy, web)
    with pytest.raises(http.client.IncompleteRead) as cut:
        proxy.fetch(f"{web.url}/cut")
    assert cut.value.partial == b"half"
    assert len([r for r in web.requests if r.target == "/cut"]) == 1
    assert retries(proxy) == 0


# -- Idempotency-Key --------------------------------------------------------------------------


@pytest.mark.parametrize("honoured", [True, False])
def test_idempotency_key_counts_where_the_upstream_is_said_to_honour_it(
    warmproxy, origin, honoured
) -> None:
    """A POST with an Idempotency-Key is sent once more where idempotency_key is true for that
    upstream, and nowhere else; one without the field never is."""
    web, other = origin(dies_when_used()), origin(dies_when_used())
    upstream = {"url": web.url, "warm": 0, "max_connections": 1, "idempotency_key": honoured}
    config = {"learn_requests": 0, "upstream": [upstream]}
    proxy = warmproxy(config=config)
    key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
    use_up(proxy, web)
    reply = proxy.fetch(f"{web.url}/keyed", "POST", b"pay", headers=key)
    assert reply.status == (200 if honoured else 502), reply
    keyed = [r for r in web.requests if r.target == "/keyed"]
    assert [bytes(r.body) for r in keyed] == [b"pay"] * (2 if honoured else 1)
    assert [r.header("Idempotency-Key") for r in keyed] == [key["Idempotency-Key"]] * len(keyed)
    for place, headers in ((web, {}), (other, key)):
        end_idle(proxy, place)
        use_up(proxy, place)
        assert proxy.fetch(f"{place.url}/once", "POST", b"x", headers=headers).status == 502
        assert len([r for r in place.requests if r.target == "/once"]) == 1
    assert retries(proxy) == honoured


# -- origins that restart ---------------------------------------------------------------------


def test_a_restarting_origin_costs_time_and_no_error(warmproxy, origin) -> None:
    """Requests of every kind that come while an origin's listener is down for 0.3 s wait and are
    served, each once; the waiting dials are counted."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=4")
    web.down()
    went_down = eventually(
        lambda: proxy.pool(web.url)["last_error"] and time.monotonic(), says=proxy.pools
    )
    kinds = ["GET", "POST", "PUT", "DELETE"] * 5
    with ThreadPoolExecutor(len(kinds)) as threads:
        replies = [
            threads.submit(proxy.fetch, f"{web.url}/{n}", kind, b"x" if kind[0] == "P" else None)
            for n, kind in enumerate(kinds)
        ]
        eventually(lambda: proxy.pool(web.url)["waiting"] == len(kinds), 0.9, proxy.pools)
        at(went_down + 0.3)
        assert [r for r in replies if r.done()] == []
        web.up()
        assert [r.result().status for r in replies] == [200] * len(kinds)
    assert Counter(r.target for r in web.requests) == {f"/{n}": 1 for n in range(len(kinds))}
    assert retries(proxy, "dial") >= 1
    assert retries(proxy, "stale") == 0
    assert proxy.count("warmproxy_acquires_total", outcome="failed") == 0


def test_patience_with_a_restart_has_an_end(warmproxy, origin) -> None:
    """An origin that worked and stays down: waiting requests get their 502 after dial_retry_for,
    not before."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "dial_retry_for": 0.5}
    proxy = warmproxy(config={"upstream": [upstream]})
    web.down()
    began = time.monotonic()
    own_answer(proxy.fetch(f"{web.url}/"), 502, "connection_refused")
    assert 0.5 <= time.monotonic() - began < 3
    assert retries(proxy, "dial") >= 1


def test_an_origin_that_never_worked_fails_at_once(warmproxy, origin) -> None:
    """No patience with an origin that nobody has seen working, nor where dial_retry_for is 0."""
    never, once = origin(listening=False), origin()
    config = {
        "defaults": {"dial_retry_for": 30},
        "upstream": [{"url": once.url, "warm": 1, "dial_retry_for": 0}],
    }
    proxy = warmproxy(config=config)
    once.down()
    for web in (never, once):
        began = time.monotonic()
        own_answer(proxy.fetch(f"{web.url}/"), 502, "connection_refused")
        assert time.monotonic() - began < 3
    assert proxy.count("warmproxy_retries_total") == 0


def test_what_is_in_flight_when_an_origin_restarts(warmproxy, origin) -> None:
    """A GET on a used connection that goes with its origin is sent once more when the origin is
    back, 0.3 s later; a POST that goes with it is a 502 and is not."""
    gone = threading.Event()

    def answer(connection, request) -> None:
        if request.target == "/held" and not gone.is_set():
            connection.read_body(request)
            assert gone.wait(20)
            raise Gone
        usual(connection, request)

    web = origin(answer)
    proxy = warmproxy(config={"learn_requests": 0})
    use_up(proxy, web)
    with ThreadPoolExecutor(2) as threads:
        get = threads.submit(proxy.fetch, f"{web.url}/held")
        assert web.wait_requests(2)[1].nth == 2
        post = threads.submit(proxy.fetch, f"{web.url}/held", "POST", b"once")
        web.wait_requests(3)
        web.refuse()
        went_down = time.monotonic()
        gone.set()
        own_answer(post.result(), 502, "connection_terminated")
        at(went_down + 0.3)
        assert not get.done()
        web.up()
        assert (get.result().status, get.result().headers["Proxy-Status"]) == (200, RETRIED)
    assert Counter((r.method, r.target) for r in web.requests[1:]) == {
        ("GET", "/held"): 2,
        ("POST", "/held"): 1,
    }
    assert retries(proxy, "stale") == 1
    assert retries(proxy, "dial") >= 1
