"""The requests of one client connection, one after the other: events in, actions out.

| state      | event                                        | next       | actions                 |
|------------|----------------------------------------------|------------|-------------------------|
| IDLE       | request head                                 | CONNECTING | Acquire                 |
| IDLE       | CONNECT of one whose TLS ends here           | TUNNEL     | ToClient 200, Intercept |
| IDLE       | malformed or denied head                     | CLOSED     | reply, CloseClient      |
| CONNECTING | leased, a request                            | FORWARDING | ToUpstream head + body  |
| CONNECTING | leased, CONNECT                              | TUNNEL     | ToClient 200, Splice    |
| CONNECTING | lease_failed                                 | see below  | reply                   |
| CONNECTING | client_eof                                   | CLOSED     | Cancel, reply, close    |
| FORWARDING | request body                                 | same       | ToUpstream              |
| FORWARDING | response bytes (no 1xx to HTTP/1.0)          | same       | ToClient                |
| FORWARDING | either body, MOVED_FROM bytes still to come  | same       | To..., MoveTo...        |
| FORWARDING | request_moved                                | same       |                         |
| FORWARDING | response_moved, as response bytes            | same       |                         |
| FORWARDING | 101 to an upgrade we passed on               | TUNNEL     | ToClient, Splice        |
| FORWARDING | response done, request done                  | IDLE       | Release, next request   |
| FORWARDING | response done, request not done, close said  | CLOSED     | Release, close (linger) |
| FORWARDING | response done, request not done, else        | LINGERING  | Release                 |
| LINGERING  | the request's body ends                      | IDLE       | next request            |
| LINGERING  | LINGER_BYTES came, or client_eof             | CLOSED     | CloseClient             |
| FORWARDING | upstream ended, no byte came, may_repeat     | CONNECTING | Release, Acquire        |
| FORWARDING | upstream ended, no byte came, else           | see below  | Release, reply 502      |
| FORWARDING | upstream ended inside the response           | CLOSED     | Release, close          |
| any        | client_lost                                  | CLOSED     | Cancel or Release       |

A reply of our own leaves the connection open (IDLE) where the request was whole and the client
wants more, else closes it. Body bytes pass through `framing` uncopied. The driver (`net/client`)
carries the actions out in order and keeps `wants_data` in mind when it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, auto

from warmproxy.errors import (
    BadRequest,
    BadResponse,
    ClientLeft,
    LoopDetected,
    RequestDenied,
    ResponseTimeout,
    UpstreamGone,
    WarmproxyError,
)
from warmproxy.origin import Origin, secured
from warmproxy.policy.access import Access, is_loopback
from warmproxy.policy.destinations import Destinations
from warmproxy.policy.interception import AGENT, Interception, Visitor
from warmproxy.policy.retry import Prefer, is_idempotent, may_repeat, preference
from warmproxy.protocol.framing import Chunked, Framing, FramingError, Length, NoBody
from warmproxy.protocol.headers import (
    JudgedRequest,
    JudgedResponse,
    judge_request,
    judge_response,
    loops,
    request_tail,
    write_request,
    write_response,
)
from warmproxy.protocol.heads import HeadBuffer, parse_request_head, parse_response_head
from warmproxy.protocol.memo import Answers, Requests
from warmproxy.protocol.messages import (
    Acquire,
    Action,
    Answered,
    Cancel,
    Close,
    CloseClient,
    Intercept,
    MoveToClient,
    MoveToUpstream,
    Release,
    RequestHead,
    ResponseHead,
    Retried,
    Splice,
    ToClient,
    ToUpstream,
)
from warmproxy.protocol.replies import CONNECTED, last_hop, reply
from warmproxy.protocol.target import (
    Forward,
    Route,
    Tunnel,
    check_host,
    inside_form,
    origin_form,
    parse_target,
)
from warmproxy.protocol.upgrade import plain_response, secure_request

HTTP_10_REMEMBERED = 1000
"""Origins; whoever uses more that speak HTTP/1.0 loses the memory of all."""

LINGER_BYTES = 2**20
"""Of a body that are thrown away after the answer before the connection is given up instead."""

MOVED_FROM = 64 * 1024
"""Bytes of a body still to come from which on the driver is asked to move them by itself: more is
gained then than it costs."""

INTERIM_LIMIT = 100
"""1xx responses that one request may get before the upstream counts as broken."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Where an http origin's requests go instead, and whether clients beyond loopback may ask."""

    origin: Origin
    remote: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all exchanges of this daemon."""

    access: Access
    destinations: Destinations
    max_head: int
    max_buffer: int
    pseudonym: bytes
    """Our name in Via: unlike any other proxy's, so that loops are seen."""
    date: Callable[[], bytes]
    """The current Date field value."""
    places: Mapping[tuple[str, int], Origin] = field(default_factory=dict)
    """(host, port) -> the https origin with the TLS profile that is configured for it."""
    upgrades: Mapping[Origin, Upgrade] = field(default_factory=dict)
    """http origins that are served over TLS."""
    gateway: Forward | None = None
    """Where all requests go, for a port that stands for one origin; its target is not used."""
    inside: bool = False
    """The client came in by a CONNECT that we intercepted: it takes us for `gateway`, over TLS."""
    is_over: bool = False
    """Who is inside finishes what is under way and begins nothing."""
    interception: Interception | None = None
    """Whose CONNECTs are intercepted, where any are."""
    default_tls: str | None = None
    """The TLS profile of https origins that are not configured."""
    http_10: set[Origin] = field(default_factory=set)
    """Origins that answered in HTTP/1.0 lately: no chunks to them (RFC 9112, 6.1)."""
    requests: Requests = field(init=False, default_factory=Requests)
    answers: Answers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", Answers(self.pseudonym))

    def become(self, other: "Terms") -> None:
        """After a reload: hold what another says, for the connections that have this one too.
        What was found out about origins stays."""
        for each in fields(self):
            if each.name != "http_10":
                object.__setattr__(self, each.name, getattr(other, each.name))


_NO_BODY = NoBody()


class State(Enum):
    IDLE = auto()
    CONNECTING = auto()
    FORWARDING = auto()
    LINGERING = auto()
    TUNNEL = auto()
    CLOSED = auto()


# in Python 3.11 reading a member through its class takes ten times as long as reading a global
_IDLE, _CONNECTING, _FORWARDING, _LINGERING, _TUNNEL, _CLOSED = State


class Exchange:
    """See the module. Each event returns the actions to carry out, in their order."""

    __slots__ = (
        "_admitted",
        "_ahead",
        "_body",
        "_client_ended",
        "_draining",
        "_head_out",
        "_held",
        "_held_size",
        "_idempotent",
        "_input",
        "_interims",
        "_judged",
        "_keep_alive",
        "_out",
        "_pinned_to",
        "_plain_host",
        "_request",
        "_responding",
        "_response",
        "_response_body",
        "_response_heads",
        "_route",
        "_status",
        "_terms",
        "_thrown_away",
        "_tries",
        "_upstream_spoke",
        "_was_used",
        "client_address",
        "state",
    )

    def __init__(self, terms: Terms, client_address: str) -> None:
        self._terms = terms
        self.client_address = client_address
        self.state = _IDLE
        self._admitted: Access | None = None
        """By what this client's address may use the proxy: a reload may bring another."""
        self._input = HeadBuffer(terms.max_head, BadRequest)
        self._response_heads: HeadBuffer | None = None
        self._ahead = b""
        """Received beyond the current request: pipelined ones, or what a tunnel's client sent
        before our 200."""
        self._client_ended = False
        self._draining = False
        self._out: list[Action] = []
        self._pinned_to: Origin | None = None
        """The origin whose connection this client has authenticated as a whole."""
        self._reset()

    def _reset(self) -> None:
        self._request: RequestHead | None = None
        self._judged: JudgedRequest | None = None
        self._route: Route | None = None
        self._body: Framing = _NO_BODY
        self._head_out = b""
        self._held: list[bytes] | None = []
        """The body as sent so far, while a second try may need it; None when it grew too long."""
        self._held_size = 0
        self._thrown_away = 0
        self._tries = 0
        self._idempotent = False
        self._plain_host = b""
        """Of an upgraded request: the authority that the client knows."""
        self._was_used = False
        self._upstream_spoke = False
        self._interims = 0
        self._response: JudgedResponse | None = None
        self._response_body: Framing = _NO_BODY
        self._responding = False
        """The client got something of the final response."""
        self._keep_alive = False
        self._status = 0

    # ── what is ──────────────────────────────────────────────────────────────────────────────

    @property
    def origin(self) -> Origin | None:
        return self._route.origin if self._route else None

    @property
    def client_ended(self) -> bool:
        """The client has half-closed."""
        return self._client_ended

    @property
    def wants_data(self) -> bool:
        """Whether the driver should read from the client: the buffers have room."""
        if not self._ahead and not self._held_size:
            return True
        waiting = self._held_size if self.state is _CONNECTING else 0
        return waiting + len(self._ahead) < self._terms.max_buffer

    @property
    def awaits_response(self) -> bool:
        """The whole request was sent and not one byte came back."""
        return self.state is _FORWARDING and self._body.done and not self._upstream_spoke

    @property
    def is_forwarding(self) -> bool:
        return self.state is _FORWARDING

    @property
    def is_quiet(self) -> bool:
        """Nothing is asked, nor has a request begun."""
        return self.state is _IDLE and not self._input.pending

    @property
    def lacks(self) -> bool:
        """A request has begun, and more of it has to come."""
        return not self._body.done or (self.state is _IDLE and self._input.pending)

    @property
    def awaits_head(self) -> bool:
        """A request's head has begun and is not complete."""
        return self.state is _IDLE and self._input.pending

    def __repr__(self) -> str:
        return f"<Exchange {self.state.name} {self.client_address} {self.origin}>"

    # ── events from the client ───────────────────────────────────────────────────────────────

    def client_data(self, data: bytes) -> list[Action]:
        if self.state is _IDLE:
            self._next_request(data)
        elif self.state is _CONNECTING or self.state is _FORWARDING:
            self._request_body(data)
        elif self.state is _LINGERING:
            self._throw_away(data)
        return self._take()

    def client_eof(self) -> list[Action]:
        """The client sends no more; it may still read."""
        self._client_ended = True
        if self.state is _IDLE or self.state is _LINGERING:
            self._close(Close.FLUSH)
        elif self.state is _CONNECTING:
            self._out.append(Cancel())
            reason = "the client stopped sending while its request waited: nothing was forwarded"
            self._answer(ClientLeft(reason))
        elif self.state is _FORWARDING and not self._body.done:
            # a request cut short must not look whole to the upstream
            self._out.append(Release(reusable=False))
            self._close(self._cut())
        return self._take()

    def client_lost(self) -> list[Action]:
        """The client's connection is gone."""
        if self.state is _CONNECTING:
            self._out.append(Cancel())
        elif self.state is _FORWARDING:
            self._out.append(Release(reusable=False))
        self.state = _CLOSED
        return self._take()

    def drain(self, *, patient: bool = False) -> list[Action]:
        """The daemon stops: the exchange in flight is this connection's last, or, with
        `patient`, the next one where none is."""
        self._draining = True
        if not patient and self.state is _IDLE and not self._input.pending:
            self._close(Close.FLUSH)
        return self._take()

    def refuse(self, error: WarmproxyError) -> list[Action]:
        """Answer before anything was asked: there is no room for this client."""
        self._answer(error)
        return self._take()

    # ── events from the pool ─────────────────────────────────────────────────────────────────

    def leased(self, was_used: bool, honours_key: bool = False) -> list[Action]:
        """The connection that Acquire asked for; `was_used`: it served a request before.
        `honours_key`: the upstream is said to honour Idempotency-Key."""
        assert self.state is _CONNECTING
        assert self._request is not None
        assert self._judged is not None
        self._was_used = was_used
        self._tries += 1
        named = honours_key and self._judged.idempotency_key
        self._idempotent = is_idempotent(self._request.method, named=named)
        if isinstance(self._route, Tunnel):
            self.state = _TUNNEL
            early, self._ahead = self._ahead, b""
            self._out += (
                ToClient(CONNECTED),
                Answered(b"CONNECT", self._route.origin, 200, None),
                Splice(early, b""),
            )
        else:
            self.state = _FORWARDING
            if self._response_heads is None or self._response_heads.pending:
                self._response_heads = HeadBuffer(self._terms.max_head, BadResponse)
            head, held = self._head_out, self._held
            self._out.append(ToUpstream(b"".join((head, *held)) if held else head))
            if held or not self._idempotent:
                self._stop_holding()
                self._offer_request()
        return self._take()

    def lease_failed(self, error: WarmproxyError) -> list[Action]:
        assert self.state is _CONNECTING
        self._answer(error)
        return self._take()

    # ── events from the upstream ─────────────────────────────────────────────────────────────

    def upstream_data(self, data: bytes) -> list[Action]:
        if self.state is not _FORWARDING:
            return self._take()
        self._upstream_spoke = True
        try:
            if self._response is None:
                self._response_head(data)
            else:
                self._response_bytes(b"", data)
        except (BadResponse, FramingError) as error:
            self._broken_response(error)
        return self._take()

    def request_moved(self, size: int) -> list[Action]:
        """So many of the bytes of MoveToUpstream went to the upstream."""
        if self.state is State.FORWARDING:
            assert isinstance(self._body, Length)
            self._body.skip(size)
        return self._take()

    def response_moved(self, size: int) -> list[Action]:
        """So many of the bytes of MoveToClient went to the client."""
        if self.state is State.FORWARDING:
            assert self._response is not None
            assert isinstance(self._response_body, Length)
            self._response_body.skip(size)
            if self._response_body.done:
                self._response_done(reusable=self._response.reusable)
        return self._take()

    def upstream_ended(self, *, reset: bool, alert: bool = False) -> list[Action]:
        """The upstream closed (`reset`: by RST, so that bytes may be missing; `alert`: by a TLS
        alert, as when it wants a client certificate)."""
        if self.state is not _FORWARDING:
            return self._take()
        if self._response is not None:
            if not reset and self._response_body.ended():
                self._response_done(reusable=False)
            else:
                self._out.append(Release(reusable=False))
                self._close(Close.ABORT if self._ends_by_close() else Close.FLUSH)
            return self._take()
        self._out.append(Release(reusable=False, unanswered=not self._upstream_spoke))
        if may_repeat(
            idempotent=self._idempotent,
            was_used=self._was_used,
            answered=self._upstream_spoke,
            replayable=self._held is not None,
            tries=self._tries,
        ):
            assert self._route is not None
            self.state = _CONNECTING
            self._out += (Retried(), Acquire(self._route.origin, Prefer.FRESH_ONLY))
        else:
            how = "reset the connection" if reset else "closed the connection"
            how = "ended TLS with an alert" if alert else how
            when = "inside a response's head" if self._upstream_spoke else "before it answered"
            unsure = "" if self._idempotent else "; whether it was applied is not known"
            token = "tls_protocol_error" if alert else None
            self._answer(UpstreamGone(f"{self.origin} {how} {when}{unsure}", token=token))
        return self._take()

    def head_timed_out(self) -> list[Action]:
        """The client has begun a head and not ended it within head_timeout."""
        if self.awaits_head:
            self._reset()
            self._answer(BadRequest("the request's head took too long (head_timeout)", status=408))
        return self._take()

    def stalled(self, *, upstream_full: bool = False) -> list[Action]:
        """Nothing has moved in either direction for stall_timeout; `upstream_full`: because the
        upstream takes no more of the request's body."""
        if self.state is not _FORWARDING:
            return self._take()
        self._out.append(Release(reusable=False))
        if self._responding:
            self._close(Close.ABORT if self._ends_by_close() else Close.FLUSH)
        elif not self._body.done:
            self._answer(
                ResponseTimeout(f"{self.origin} takes no more of the request's body")
                if upstream_full
                else BadRequest("the request's body stalled (stall_timeout)", status=408)
            )
        else:
            self._answer(ResponseTimeout(f"{self.origin} stalled inside a response's head"))
        return self._take()

    def response_timed_out(self) -> list[Action]:
        """The upstream has been silent for response_timeout."""
        if self.awaits_response:
            self._out.append(Release(reusable=False))
            self._answer(ResponseTimeout(f"{self.origin} did not begin to answer in time"))
        return self._take()

    # ── the request's side ───────────────────────────────────────────────────────────────────

    def _next_request(self, data: bytes) -> None:
        self._reset()
        try:
            found = self._input.feed(data)
            if found is not None:
                block, self._ahead = found
                if not self._begin_again(block):
                    self._begin(block, parse_request_head(block))
        except WarmproxyError as error:
            self._answer(error)

    def _begin_again(self, block: bytes) -> bool:
        """Begin a request whose fields were judged before; False where they were not."""
        found = self._terms.requests.find(block)
        if found is None:
            return False
        known, path = found
        self._request, self._judged = known.request, known.judged
        access = self._terms.access
        if self._admitted is not access:
            access.check_client(self.client_address)
            self._admitted = access
        self._route = known.route
        if self._pinned_to is not None and self._pinned_to is not known.route.origin:
            self._pinned_to = None
        self.state = _CONNECTING
        self._head_out = known.start + path + known.end
        self._out.append(known.acquire)
        return True

    def _begin(self, block: bytes, head: RequestHead) -> None:
        self._request = head
        terms = self._terms
        route = self._route_to(head)
        judged = judge_request(head)
        terms.access.check_client(self.client_address)
        self._admitted = terms.access
        self._judged = judged
        self._body = judged.body
        terms.access.check_credentials(judged.proxy_authorization)
        if loops(judged, terms.pseudonym):
            raise LoopDetected("this request has already been through this proxy")
        terms.destinations.check_origin(route.origin)
        if isinstance(route, Forward):
            route = self._over_tls(route, judged)
        self._route = route
        if judged.max_forwards == 0:
            self._end_here(head, judged)
            return
        if judged.chunked and route.origin in terms.http_10:
            raise BadRequest(
                f"{route.origin} speaks HTTP/1.0 and needs to be told the body's length", status=411
            )
        if route.origin != self._pinned_to:
            self._pinned_to = None
        self.state = _CONNECTING
        if isinstance(route, Tunnel):
            self._connect(route)
            return
        tail = request_tail(judged, terms.pseudonym)
        self._head_out = write_request(head.method, route.target, route.host, tail)
        if terms.gateway is None and not self._plain_host:
            terms.requests.keep(block, head, judged, route, self._head_out)
        rest, self._ahead = self._ahead, b""
        if rest:
            self._request_body(rest)
        if self.state is _CONNECTING:  # the body's first bytes were no reason to refuse
            self._out.append(Acquire(route.origin, preference(head.method)))

    def _connect(self, route: Tunnel) -> None:
        """A CONNECT: through a raw connection, or to ourselves."""
        assert self._judged is not None
        interception = self._terms.interception
        if interception is not None:
            fields = self._judged.fields
            agent = next((value for name, value in fields if name.lower() == b"user-agent"), b"")
            visitor = Visitor(self.client_address, agent[:AGENT], route.origin)
            if interception.takes(visitor):
                self.state = _TUNNEL
                early, self._ahead = self._ahead, b""
                self._out += (
                    ToClient(CONNECTED),
                    Answered(b"CONNECT", route.origin, 200, None),
                    Intercept(visitor, early),
                )
                return
        self._out.append(Acquire(route.origin, Prefer.FRESH_ONLY))

    def _route_to(self, head: RequestHead) -> Route:
        gateway = self._terms.gateway
        if gateway is None:
            return parse_target(head.method, head.target)
        if head.method == b"CONNECT":
            raise BadRequest("this port stands for one upstream and opens no tunnels")
        if self._terms.inside:
            return inside_form(head.method, head.target, gateway)
        return origin_form(head.target, gateway)

    def _over_tls(self, route: Forward, judged: JudgedRequest) -> Forward:
        """The route with its TLS profile, for https:// and for http:// that is upgraded."""
        terms, origin = self._terms, route.origin
        assert self._request is not None
        if terms.inside:
            if judged.host and self._request.target.startswith((b"/", b"*")):
                check_host(judged.host, route)
            return route
        if terms.gateway is not None:
            secure = origin.scheme == "https"
            if secure and judged.host:
                judged.fields = secure_request(judged.fields, judged.host, route.host)
            self._plain_host = judged.host
            return route
        if origin.scheme == "https":
            place = terms.places.get((origin.host, origin.port))
            place = place or secured(origin, terms.default_tls or "")
            return Forward(place, route.target, route.host)
        upgrade = terms.upgrades.get(origin)
        if upgrade is None:
            return route
        if not upgrade.remote and not is_loopback(self.client_address):
            raise RequestDenied(
                f"{origin} is upgraded to https for clients on loopback only (upgrade_remote)"
            )
        host = upgrade.origin.authority.removesuffix(":443").encode()
        judged.fields = secure_request(judged.fields, route.host, host)
        self._plain_host = route.host
        return Forward(upgrade.origin, route.target, host)

    def _request_body(self, data: bytes) -> None:
        """Bytes from the client while an exchange is on: its body, or what comes after it."""
        if isinstance(self._route, Tunnel) or self._body.done:
            self._ahead += data
            return
        try:
            mine, rest = self._body.feed(data)
        except FramingError as error:
            waiting = self.state is _CONNECTING
            self._out.append(Cancel() if waiting else Release(reusable=False))
            if self._response is None:
                self._answer(BadRequest(f"the request's body: {error}"))
            else:
                self._close(self._cut())
            return
        if rest:
            self._ahead += rest
        if not mine:
            return
        if self._held is not None:
            self._held.append(mine)
            self._held_size += len(mine)
        if self.state is _FORWARDING:
            self._stop_holding()
            self._out.append(ToUpstream(mine))
            self._offer_request()

    def _offer_request(self) -> None:
        """The rest of a long body need not pass here, unless it is kept for a second try."""
        body = self._body
        if isinstance(body, Length) and body.left >= MOVED_FROM and self._held is None:
            self._out.append(MoveToUpstream(body.left))

    def _stop_holding(self) -> None:
        """Forget the sent body where no second try can come or it is too long to keep."""
        if self._held_size > self._terms.max_buffer or not self._idempotent:
            self._held = None
            self._held_size = 0

    # ── the response's side ──────────────────────────────────────────────────────────────────

    def _response_head(self, data: bytes) -> None:
        assert self._request is not None
        assert self._judged is not None
        assert self._response_heads is not None
        while (found := self._response_heads.feed(data)) is not None:
            block, data = found
            if self._plain_response(block, data):
                return
            head = parse_response_head(block)
            self._remember_version(head.version)
            client_10 = self._request.version == b"1.0"
            judged = judge_response(head, self._request.method, decode=client_10)
            if judged.interim:
                self._interims += 1
                if self._interims > INTERIM_LIMIT:
                    raise BadResponse(f"more than {INTERIM_LIMIT} interim responses")
                if not client_10:
                    self._out.append(ToClient(self._write(head, judged, True)))
            elif head.status == 101:
                self._switch(head, judged, data)
                return
            else:
                self._receive(head.status, judged, judged.body)
                if self._plain_host:
                    origin = self._route_origin()
                    judged.fields = plain_response(judged.fields, self._plain_host, origin)
                if self._tries > 1:
                    # a parameter of our own; RFC 9209, 2.1 has those ignored
                    judged.fields = [*judged.fields, (b"Proxy-Status", b"warmproxy; retried")]
                self._response_bytes(self._write(head, judged, self._keep_alive), data)
                return

    def _plain_response(self, block: bytes, data: bytes) -> bool:
        """Pass on a response that is nothing special; False where it is."""
        request = self._request
        assert request is not None
        if (
            self._plain_host
            or self._tries > 1
            or request.version == b"1.0"
            or request.method == b"HEAD"
        ):
            return False
        plain = self._terms.answers.read(block)
        if plain is None:
            return False
        head, status, length, judged = plain
        if self._terms.http_10:
            self._remember_version(b"1.1")
        whole = length == len(data)
        body = _NO_BODY if whole else Chunked() if length is None else Length(length)
        self._receive(status, judged, body)
        if not self._keep_alive:
            head = head[:-2] + b"Connection: close\r\n\r\n"
        if whole:
            self._responding = True
            self._out.append(ToClient(head + data))
            self._response_done(reusable=judged.reusable)
        else:
            self._response_bytes(head, data)
        return True

    def _receive(self, status: int, judged: JudgedResponse, body: Framing) -> None:
        """The final response begins."""
        assert self._judged is not None
        self._response = judged
        self._response_body = body
        self._status = status
        # An upstream that closes with the upload under way wants no more of it. Who waits for a
        # 100 and gets its final answer may leave the body out: only a close tells what comes
        # next (RFC 9110, 10.1.1).
        waits = self._judged.expect_continue and not self._interims
        going_on = self._body.done or (judged.reusable and not waits)
        self._keep_alive = going_on and not judged.until_close and not self._is_last()

    def _response_bytes(self, head: bytes, data: bytes) -> None:
        response = self._response
        assert response is not None
        mine, rest = self._response_body.feed(data)
        if head or mine:
            self._responding = True
            self._out.append(ToClient(head + mine if head else mine))
        if self._response_body.done:
            # what follows a complete response belongs to no request (RFC 9112, 6.3)
            self._response_done(reusable=response.reusable and not rest)
        elif head and isinstance(body := self._response_body, Length) and body.left >= MOVED_FROM:
            self._out.append(MoveToClient(body.left))

    def _response_done(self, *, reusable: bool) -> None:
        assert self._response is not None
        assert self._judged is not None
        if self._response.connection_auth or self._judged.connection_auth:
            self._pinned_to = self.origin
        request_done = self._body.done
        go_on = request_done and self._keep_alive and not self._is_last()
        pinned = self._pinned_to is not None
        # authenticated as a whole, a connection is of use to this client or to nobody
        reusable = reusable and request_done and (go_on or not pinned)
        hint = self._response.keep_alive_timeout
        self._out.append(Release(reusable, pinned and reusable, hint))
        self._answered(self._status, None)
        if not request_done and self._keep_alive and not self._is_last():
            self.state = _LINGERING
        elif not request_done:
            self._close(Close.LINGER)
        elif go_on:
            self.state = _IDLE
        elif self._judged.keep_alive and not self._client_ended:
            # what the client has asked beyond this request may be on its way (RFC 9112, 9.6)
            self._close(Close.LINGER)
        else:
            self._close(Close.FLUSH)

    def _throw_away(self, data: bytes) -> None:
        """The rest of a body whose request is answered already: the next request follows it."""
        try:
            mine, rest = self._body.feed(data)
        except FramingError:
            self._close(Close.FLUSH)
            return
        self._thrown_away += len(mine)
        if self._body.done:
            self._ahead = rest
            if self._is_last():
                self._close(Close.FLUSH)
            else:
                self.state = _IDLE
        elif self._thrown_away > LINGER_BYTES:
            self._close(Close.LINGER)

    def _route_origin(self) -> Origin:
        assert self._route is not None
        return self._route.origin

    def _remember_version(self, version: bytes) -> None:
        origin, known = self._route_origin(), self._terms.http_10
        if version == b"1.0":
            if len(known) >= HTTP_10_REMEMBERED:
                known.clear()
            known.add(origin)
        elif known:
            known.discard(origin)

    def _switch(self, head: ResponseHead, judged: JudgedResponse, rest: bytes) -> None:
        """101: from here on both sides speak another protocol."""
        assert self._judged is not None
        if self._judged.upgrade is None or not self._body.done:
            raise BadResponse("the upstream switched protocols without being asked to")
        self.state = _TUNNEL
        early, self._ahead = self._ahead, b""
        self._out.append(ToClient(self._write(head, judged, True)))
        self._answered(101, None)
        self._out.append(Splice(early, rest))

    def _broken_response(self, error: BadResponse | FramingError) -> None:
        self._out.append(Release(reusable=False))
        if self._responding:
            self._close(Close.ABORT if self._ends_by_close() else Close.FLUSH)
        elif isinstance(error, BadResponse):
            self._answer(error)
        else:
            self._answer(BadResponse(f"{self.origin} sent a broken body: {error}"))

    def _cut(self) -> Close:
        cut = self._response is not None and self._ends_by_close()
        return Close.ABORT if cut else Close.FLUSH

    def _ends_by_close(self) -> bool:
        """The client tells the end of this response by the end of its connection only."""
        assert self._request is not None
        assert self._response is not None
        return self._response.until_close or (
            self._response.chunked and self._request.version == b"1.0"
        )

    def _write(self, head: ResponseHead, judged: JudgedResponse, keep_alive: bool) -> bytes:
        assert self._request is not None
        return write_response(
            head,
            judged,
            via=self._terms.pseudonym,
            date=self._terms.date(),
            keep_alive=keep_alive,
            client_10=self._request.version == b"1.0",
        )

    # ── our own answers, and the end ─────────────────────────────────────────────────────────

    def _answer(self, error: WarmproxyError) -> None:
        """Answer by ourselves, and go on with the connection where that is safe."""
        request, judged = self._request, self._judged
        go_on = (
            judged is not None
            and judged.keep_alive
            and self._body.done
            and not isinstance(error, BadRequest)
            and not self._is_last()
            # what came after a refused CONNECT was meant for a tunnel
            and not (request is not None and request.method == b"CONNECT" and self._ahead)
        )
        answer = reply(
            error,
            close=not go_on,
            head_only=request is not None and request.method == b"HEAD",
            date=self._terms.date(),
            retried=self._tries > 1,
        )
        self._out.append(ToClient(answer))
        self._answered(error.status, error)
        if go_on:
            self.state = _IDLE
        else:
            self._close(Close.LINGER)

    def _end_here(self, head: RequestHead, judged: JudgedRequest) -> None:
        """Max-Forwards: 0 makes us the one who answers (RFC 9110, 7.6.2)."""
        go_on = self._body.done and not self._is_last()
        date = self._terms.date()
        answer = last_hop(head.method, head.target, judged.fields, close=not go_on, date=date)
        self._out.append(ToClient(answer))
        self._answered(200, None)
        if not go_on:
            self._close(Close.LINGER)

    def _answered(self, status: int, error: WarmproxyError | None) -> None:
        method = self._request.method if self._request else b"-"
        self._out.append(Answered(method, self.origin, status, error))

    def _is_last(self) -> bool:
        """This exchange is the last of its connection."""
        wanted = self._judged is not None and self._judged.keep_alive
        # who half-closes may have asked for more before (RFC 9112, 9.3.2)
        no_more = self._client_ended and not self._ahead
        return not wanted or self._draining or no_more

    def _close(self, how: Close) -> None:
        self.state = _CLOSED
        self._out.append(CloseClient(how))

    def _take(self) -> list[Action]:
        """The actions so far; first begin what was pipelined, if its turn has come."""
        while self._ahead and self.state is _IDLE:
            ahead, self._ahead = self._ahead, b""
            self._next_request(ahead)
        if self._client_ended and self.state is _IDLE:
            self._close(Close.FLUSH)  # what is left of a request will never be whole
        out, self._out = self._out, []
        return out
