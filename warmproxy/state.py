"""What was learned of origins' idle limits, over a restart: a small JSON file.

    {"version": 1, "origins": {"http://example.com:80": {"used":
        {"lowest": 4.99, "highest": 5.02, "learned": 1790000000.0}}}}

`learned` is wall-clock time; the limits are what policy/learn calls Known, in seconds. What is read
is believed as long as no canary says otherwise, and what in it is not of this form is left out.
Several daemons may share a file: each puts in what it has learned itself and leaves the rest. (Of
two that write at the same moment one loses its news, until its next.)
"""

import asyncio
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from math import nan
from pathlib import Path
from typing import Any

from warmproxy import log
from warmproxy.origin import Origin
from warmproxy.policy.learn import SHORTEST, Known
from warmproxy.pool.origin_pool import OriginPool

VERSION = 1
KINDS = ("fresh", "used", "raw")
FIELDS = ("lowest", "highest", "learned")
ORIGINS = 1000
"""Kept at most: the ones learned last."""
LARGEST = 4 * 2**20
"""Bytes of a file that is read at all."""
KEPT = 7 * 86400.0
"""Seconds after which a limit that nobody saw again is forgotten."""
REFRESHED = 86400.0
"""Seconds after which one that still holds is written again."""
ALIKE = 0.05
"""A change by less is not worth writing."""
LONGEST = 1e6

WRITE_SECONDS = 30.0
"""Between two writes at least."""

Pool = OriginPool[Any, Any]
Limits = dict[str, dict[str, tuple[Known, float]]]
"""Origin -> kind -> what is known, and the wall-clock time when it was learned."""


class StateFile:
    """What this run found in the file and what it has learned since. With the path "" there is no
    file. A file that cannot be read or written is said so once, and that is all it does.
    """

    def __init__(self, path: str, told: Mapping[str, Any] = {}) -> None:
        """`told`: what another process knew that we take over from, as `handed_over` gives it."""
        self._path = path
        self._limits: Limits = {}
        self._learned: set[str] = set()
        """Origins of which this run knows better than the file."""
        self._is_changed = False
        self._look_at = 0.0
        self._writing: asyncio.Future[None] | None = None
        self._failed = False
        if path:
            try:
                self._limits = read(path, time.time())
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                log.event("state_unreadable", level="warning", path=path, reason=_reason(error))
        self._limits |= _limits(told, time.time())

    def recall(self, origin: Origin) -> Mapping[str, Known]:
        """What is known of this origin, by kind."""
        return {kind: known for kind, (known, _) in self._limits.get(str(origin), {}).items()}

    def handed_over(self, pools: Iterable[Pool]) -> dict[str, Any]:
        """All that is known now, in the form of the file's `origins`."""
        self._take_over(pools)
        return {name: _entry(kinds) for name, kinds in self._limits.items() if kinds}

    def look(self, pools: Iterable[Pool], loop: asyncio.AbstractEventLoop) -> None:
        """Called often: now and then, news are written, off the loop's thread."""
        if not self._path or loop.time() < self._look_at or self._writing is not None:
            return
        self._look_at = loop.time() + WRITE_SECONDS
        if changes := self._changes(pools):
            self._writing = loop.run_in_executor(None, self._write, changes)
            self._writing.add_done_callback(self._written)

    async def close(self, pools: Iterable[Pool]) -> None:
        """Write the last news."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._path and (changes := self._changes(pools)):
            self._write(changes)

    def _changes(self, pools: Iterable[Pool]) -> Limits:
        """What is to be written: all of this run's, or nothing where nothing is new."""
        self._take_over(pools)
        if not self._is_changed:
            return {}
        self._is_changed = False
        changes = {name: dict(self._limits[name]) for name in self._learned}
        if len(self._limits) > ORIGINS:
            self._limits = _newest(self._limits)
            self._learned &= self._limits.keys()
        return changes

    def _take_over(self, pools: Iterable[Pool]) -> None:
        """What the pools know."""
        now = time.time()
        for pool in pools:
            name = str(pool.origin)
            for kind, limit in pool.idle_limits.items():
                if _is_news(limit.known, self._limits.get(name, {}).get(kind), now):
                    kinds = self._limits.setdefault(name, {})
                    kinds.pop(kind, None)
                    if limit.known is not None:
                        kinds[kind] = (limit.known, now)
                    self._learned.add(name)
                    self._is_changed = True

    def _write(self, changes: Limits) -> None:
        """In whichever thread."""
        try:
            write(self._path, changes, time.time())
        except OSError as error:
            self._is_changed = True  # the next look tries again
            if not self._failed:
                self._failed = True
                reason = _reason(error)
                log.event("state_unwritable", level="warning", path=self._path, reason=reason)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writing = None


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _is_news(known: Known | None, before: tuple[Known, float] | None, now: float) -> bool:
    if known is None or before is None:
        return (known is None) != (before is None)
    old, learned = before
    return now - learned > REFRESHED or any(
        abs(a - b) > ALIKE * b
        for a, b in ((known.lowest, old.lowest), (known.highest, old.highest))
    )


def read(path: str, now: float) -> Limits:
    """What the file says and is not too old. Raises OSError or ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # who puts a pipe there shall not stop us
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    match document:
        case {"version": int(version), "origins": dict(origins)} if version == VERSION:
            return _limits(origins, now)
    raise ValueError(f"it holds no limits of version {VERSION}")


def _limits(origins: Mapping[str, Any], now: float) -> Limits:
    return {name: kinds for name, entry in origins.items() if (kinds := _kinds(entry, now))}


def _kinds(entry: object, now: float) -> dict[str, tuple[Known, float]]:
    kinds = {}
    for kind, said in entry.items() if isinstance(entry, dict) else ():
        if kind in KINDS and isinstance(said, dict):
            low, high, learned = (_number(said.get(name)) for name in FIELDS)
            if SHORTEST <= low <= high < LONGEST and now - KEPT < learned <= now + KEPT:
                kinds[kind] = (Known(float(low), float(high)), float(learned))
    return kinds


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else nan


def write(path: str, changes: Limits, now: float) -> None:
    """Put the changes into the file: an origin without kinds is taken out of it. The file is whole
    at each moment, and its owner's alone. Raises OSError."""
    try:
        limits = read(path, now)
    except (FileNotFoundError, ValueError):
        limits = {}
    limits = _newest(limits | changes)
    import tempfile  # here: 4 ms and 0.6 MiB, at the first write

    entries = {name: _entry(kinds) for name, kinds in limits.items()}
    document = {"version": VERSION, "origins": entries}
    place = Path(path)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, new = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)  # mode 0600
    try:
        with open(fd, "w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entry(kinds: Mapping[str, tuple[Known, float]]) -> dict[str, dict[str, float]]:
    entry = {}
    for kind, (known, learned) in kinds.items():
        values = (round(known.lowest, 3), round(known.highest, 3), round(learned, 1))
        entry[kind] = dict(zip(FIELDS, values, strict=True))
    return entry


def _newest(limits: Limits) -> Limits:
    """Without the origins of which nothing is known, and those beyond ORIGINS that were learned
    first."""
    known = [(name, kinds) for name, kinds in limits.items() if kinds]
    known.sort(key=lambda item: max(learned for _, learned in item[1].values()))
    return dict(known[-ORIGINS:])
