"""What has to change when a client knows an upstream by another name than its own.

A client that speaks http://h is served over https://h (upgrade), or knows the upstream as the
address of a gateway. Where either side names the other's idea of it in a field, that is put right:

| field           | direction | change                                                     |
|-----------------|-----------|------------------------------------------------------------|
| Origin, Referer | request   | http://h becomes https://h, or checks against CSRF fail    |
| Location        | response  | https://h becomes http://h, or the client leaves us        |
| Set-Cookie      | response  | without Secure, or the client would not send the cookie back |

Bodies are never changed.
"""

import re
from collections.abc import Sequence

from warmproxy.origin import Origin
from warmproxy.protocol.messages import Field

_PORT = {"http": ":80", "https": ":443"}

_SECURE = re.compile(rb";[ \t]*secure[ \t]*(?=;|$)", re.IGNORECASE)


def secure_request(fields: Sequence[Field], plain: bytes, secure: bytes) -> list[Field]:
    """Fields for the upstream. `plain`: authority as the client names it, behind http://.
    `secure`: the upstream's, behind https://."""
    return [
        (name, _moved(value, b"http://" + plain, b"https://" + secure))
        if name.lower() in (b"origin", b"referer")
        else (name, value)
        for name, value in fields
    ]


def plain_response(fields: Sequence[Field], plain: bytes, origin: Origin) -> list[Field]:
    """Fields for the client, which knows `origin` as http:// and the authority `plain`."""
    scheme, authority = origin.scheme, origin.authority
    names = {f"{scheme}://{authority}", f"{scheme}://{authority.removesuffix(_PORT[scheme])}"}
    changed: list[Field] = []
    for name, value in fields:
        lower = name.lower()
        if lower in (b"location", b"content-location"):
            for known in names:
                value = _moved(value, known.encode(), b"http://" + plain)
        elif lower == b"set-cookie" and scheme == "https":
            value = _SECURE.sub(b"", value)
        changed.append((name, value))
    return changed


def _moved(value: bytes, old: bytes, new: bytes) -> bytes:
    """`value` with `old` at its beginning replaced, where a whole authority ends there."""
    if value[: len(old)].lower() != old.lower() or value[len(old) : len(old) + 1] not in (
        b"",
        b"/",
        b"?",
        b"#",
    ):
        return value
    return new + value[len(old) :]
