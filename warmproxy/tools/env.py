"""`warmproxy env`: the variables that send programs to the proxy, for a shell."""

import os
import shlex
from collections.abc import Mapping

TO_PROXY = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")
PAST_PROXY = ("no_proxy", "NO_PROXY")
LOCAL = "localhost,127.0.0.1,::1"
"""What does not need a proxy, unless the environment says something else already."""


def variables(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables in both spellings, since programs read one or the other.

    Where `environ` has no_proxy (or NO_PROXY) already, also an empty one, that stays.
    """
    past = next((environ[name] for name in PAST_PROXY if name in environ), LOCAL)
    return dict.fromkeys(TO_PROXY, url) | dict.fromkeys(PAST_PROXY, past)


def env(url: str, *, unset: bool = False) -> int:
    """Print the lines for `eval`; with `unset`, those that take the variables away. Returns 0."""
    if unset:
        print(f"unset {' '.join((*TO_PROXY, *PAST_PROXY))}")
        return 0
    for name, value in variables(url, os.environ).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0
