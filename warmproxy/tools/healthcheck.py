"""`warmproxy healthcheck`: does the daemon answer? Made for a container's HEALTHCHECK."""

import http.client

TIMEOUT = 3.0
"""Seconds for connecting, and again for the answer."""


def get(address: tuple[str, int], path: str) -> tuple[int, bytes]:
    """`ask` for a page."""
    return ask(address, "GET", path)


def ask(address: tuple[str, int], method: str, path: str) -> tuple[int, bytes]:
    """Ask the admin listener at (host, port); its status and body. No proxy is ever used.

    Raises OSError, with a sentence for people, where nothing sensible answers, and its subclass
    ConnectionRefusedError where nothing listens.
    """
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    except TimeoutError:
        raise OSError(f"{authority(address)} does not answer within {TIMEOUT:g} s") from None
    except ConnectionRefusedError:
        raise ConnectionRefusedError(f"nothing listens on {authority(address)}") from None
    except http.client.RemoteDisconnected:
        raise OSError(f"{authority(address)} hung up without an answer") from None
    except http.client.HTTPException:
        raise OSError(f"what answers on {authority(address)} does not speak HTTP") from None
    except OSError as error:
        raise OSError(f"{authority(address)}: {error.strerror or error}") from None
    finally:
        connection.close()


def authority(address: tuple[str, int]) -> str:
    """(host, port) as it is written: IPv6 in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def healthcheck(address: tuple[str, int]) -> int:
    """Print one line; 0 if /healthz at (host, port) says 200, else 1."""
    try:
        status, _ = get(address, "/healthz")
    except OSError as error:
        print(f"unhealthy: {error}")
        return 1
    if status != 200:
        print(f"unhealthy: /healthz on {authority(address)} says {status}")
        return 1
    print(f"healthy: {authority(address)}")
    return 0
