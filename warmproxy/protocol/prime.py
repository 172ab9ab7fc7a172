"""A request of our own on a connection that nobody waits for, and what becomes of it."""

from warmproxy import __version__
from warmproxy.errors import BadResponse
from warmproxy.origin import Origin
from warmproxy.protocol.framing import Framing, FramingError
from warmproxy.protocol.headers import judge_response
from warmproxy.protocol.heads import HeadBuffer, parse_response_head
from warmproxy.protocol.messages import RequestHead
from warmproxy.settings import parse_prime


def prime_request(text: str, origin: Origin) -> RequestHead:
    """The request that `prime` in the settings means: "HEAD /healthz"."""
    method, target = parse_prime(text)
    port = ":80" if origin.scheme == "http" else ":443"
    fields = (
        (b"Host", origin.authority.removesuffix(port).encode()),
        (b"User-Agent", b"warmproxy/" + __version__.encode()),
        (b"Accept", b"*/*"),
    )
    return RequestHead(method.encode(), target.encode(), b"1.1", fields)


def write_prime(head: RequestHead) -> bytes:
    """It is forwarded for nobody, so there is no Via."""
    lines = [b"%b %b HTTP/1.1" % (head.method, head.target)]
    lines += map(b": ".join, head.fields)
    return b"\r\n".join((*lines, b"", b""))


class PrimeAnswer:
    """Reads the answer, to its end. `result` is empty until it is known: the class of the status
    code (2xx) where the connection survived, else why it did not, `why` in words.
    """

    __slots__ = ("_body", "_heads", "_method", "keep_alive_timeout", "result", "status", "why")

    def __init__(self, method: bytes, max_head: int) -> None:
        self._method = method
        self._heads = HeadBuffer(max_head, BadResponse)
        self._body: Framing | None = None
        self.status = 0
        self.keep_alive_timeout: float | None = None
        """Seconds for which the upstream says that it keeps the connection idle."""
        self.result = ""
        self.why = ""

    @property
    def survived(self) -> bool:
        """The answer is complete, and the connection may serve another request."""
        return self.result.endswith("xx")

    def feed(self, data: bytes) -> None:
        """Bytes of the upstream's."""
        try:
            if self._body is None:
                data = self._head(data)
            if self._body is not None and not self.result:
                _, rest = self._body.feed(data)
                if rest:
                    raise FramingError("bytes that belong to no answer")
                if self._body.done:
                    self.result = f"{self.status // 100}xx"
        except (BadResponse, FramingError) as error:
            self._lost("invalid", str(error))

    def ended(self) -> None:
        """The connection is over."""
        self._lost("ended", "the upstream ended the connection instead of answering")

    def timed_out(self, seconds: float) -> None:
        self._lost("timeout", f"there was no whole answer within {seconds:g} s")

    def _head(self, data: bytes) -> bytes:
        """Reads up to the final head; what followed it."""
        while (found := self._heads.feed(data)) is not None:
            block, data = found
            head = parse_response_head(block)
            judged = judge_response(head, self._method)
            if judged.interim:
                continue
            self.status = head.status
            self.keep_alive_timeout = judged.keep_alive_timeout
            self._body = judged.body
            if not judged.reusable:
                self._lost("close", f"the answer ({head.status}) ends the connection")
            break
        return data

    def _lost(self, result: str, why: str) -> None:
        self.result, self.why = result, why
