"""POST /warm: what is wished for. No sockets here."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from warmproxy.errors import BadRequest
from warmproxy.origin import Origin, origin_of_url
from warmproxy.origin import origin as make_origin
from warmproxy.policy.shares import deal
from warmproxy.settings import duration, shown, without_password

EXAMPLE = "POST /warm?origin=https://api.example.com&count=20&for=15m"
PARAMETERS = ("origin", "count", "tls", "for")
DURATION = "15m"
"""Where nothing is said."""


@dataclass(frozen=True, slots=True)
class Wish:
    """To hold at least so many idle connections for a while; 0 ends what was wished before, None
    leaves it as it is."""

    origin: Origin
    """http, or tcp: what `count` is of"""
    count: int | None
    tls: int | None
    """connections with TLS done, to the same place"""
    seconds: float
    client: str
    """the address of whoever asks"""

    def shares(self, of: int) -> list[tuple[Any, ...]]:
        """The part of each of several processes, as `of_parts` takes it: there is one object for
        each origin in one process, and another in the next."""
        counts = [None] * of if self.count is None else deal(self.count, of)
        tls = [None] * of if self.tls is None else deal(self.tls, of)
        place = (self.origin.scheme, self.origin.host, self.origin.port)
        rest = (self.seconds, self.client)
        return [(*place, *pair, *rest) for pair in zip(counts, tls, strict=True)]

    @classmethod
    def of_parts(cls, parts: tuple[Any, ...]) -> "Wish":
        return cls(make_origin(*parts[:3]), *parts[3:])


def parse(query: str, client: str) -> Wish:
    """The wish that a query string holds. Raises BadRequest."""
    try:
        given = parse_qs(query, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise BadRequest(f"too many parameters; for example {EXAMPLE}") from None
    for name, values in given.items():
        if name not in PARAMETERS:
            raise BadRequest(f"unknown parameter {shown(name)}; there are {', '.join(PARAMETERS)}")
        if len(values) > 1:
            raise BadRequest(f"{name} is given twice")
    text = {name: values[0] for name, values in given.items()}
    if "origin" not in text or not ("count" in text or "tls" in text):
        raise BadRequest(f"origin, and count or tls, must be given; for example {EXAMPLE}")
    try:
        origin = origin_of_url(text["origin"])
    except ValueError as error:
        why = without_password(" ".join(str(error).split()))
        raise BadRequest(f"origin: {why}") from None
    if origin.scheme == "http" and "tls" in text:
        raise BadRequest("tls is for https:// origins")
    try:
        seconds = duration(text.get("for", DURATION))
    except ValueError as error:
        raise BadRequest(f"for={shown(text['for'])} {error}") from None
    return Wish(origin, _count(text, "count"), _count(text, "tls"), seconds, client)


def _count(text: dict[str, str], name: str) -> int | None:
    if name not in text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text[name]):
        raise BadRequest(f"{name}={shown(text[name])} must be a whole number >= 0")
    return int(text[name])
