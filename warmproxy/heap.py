"""Freed memory goes back to the system.

Each TLS connection of uvloop has a buffer of 256 KiB, and each of its reads takes as much and keeps
a little. What is small settles in between, so the heap grows although what is in use does not: by
20 MiB an hour with one TLS origin. glibc gives free pages between used ones back only when it is
asked; where another C library is in use, nothing is done.
"""

import ctypes
from collections.abc import Callable


def trimmer() -> Callable[[int], object]:
    """glibc's malloc_trim, or what does nothing."""
    trim: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)
    return trim
