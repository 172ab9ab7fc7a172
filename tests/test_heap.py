"""What is freed between things that stay."""

import os
import platform
from pathlib import Path

from warmproxy.heap import trimmer

COUNT, SIZE = 200, 100_000
"""Of less than malloc maps by itself, each before something small that stays."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_freed_pages_between_used_ones_are_given_back() -> None:
    """Most of what was freed is no longer resident; without glibc nothing is done."""
    trim = trimmer()
    if platform.libc_ver()[0] != "glibc":
        assert trim(0) is None
        return
    trim(0)
    pieces = [(b"x" * SIZE, b"y" * 1000) for _ in range(COUNT)]
    stays = [small for _, small in pieces]
    before = resident()
    del pieces
    trim(0)
    assert before - resident() > COUNT * SIZE // 2
    assert len(stays) == COUNT
