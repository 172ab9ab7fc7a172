"""The state file: what is written is read again, and nothing in it can do harm."""

import asyncio
import json
import os
import stat
import time
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from warmproxy import state
from warmproxy.observe import Observer
from warmproxy.origin import Origin, origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.learn import IdleLimit, Known
from warmproxy.policy.sizing import Fixed
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.settings import OriginSettings
from warmproxy.state import StateFile, read, write

NOW = 1_790_000_000.0
WEB = origin("http", "example.com", 80)
RAW = origin("tcp", "example.com", 443)


def pool(where: Origin = WEB, **known: Known) -> OriginPool[int, str]:
    made: OriginPool[int, str] = OriginPool(
        where, OriginSettings(), Fixed(0), DialBudget(1, 1), Observer(), lambda: 0.0, 0.0
    )
    made.recall(known)
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "folder" / "limits.json")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that were logged."""
    events: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("warmproxy.log.event", lambda name, **fields: events.append((name, fields)))
    return events


def save(path: str, *pools: OriginPool[int, str]) -> None:
    asyncio.run(StateFile(path).close(pools))


# ── what is kept ─────────────────────────────────────────────────────────────────────────────


def test_what_was_learned_is_there_after_a_restart(path: str) -> None:
    """All kinds, by origin, and only the owner may look into the file."""
    known = {"fresh": Known(60.0, 61.5), "used": Known(4.99, 5.02)}
    save(path, pool(**known), pool(RAW, raw=Known(91.5, 92.0)), pool(origin("http", "new", 80)))
    again = StateFile(path)
    assert again.recall(WEB) == known
    assert again.recall(RAW) == {"raw": Known(91.5, 92.0)}
    assert again.recall(origin("http", "new", 80)) == {}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700
    assert os.listdir(Path(path).parent) == ["limits.json"]


def test_where_nothing_was_learned_nothing_is_written(path: str) -> None:
    save(path, pool())
    assert not Path(path).parent.exists()


def test_an_empty_path_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    save("", pool(used=Known(5.0, 5.0)))
    assert (os.listdir(tmp_path), said) == ([], [])


def test_what_another_daemon_wrote_of_other_origins_stays(path: str) -> None:
    ours = StateFile(path)
    save(path, pool(RAW, raw=Known(9.0, 9.0)))
    asyncio.run(ours.close([pool(used=Known(5.0, 5.0))]))
    assert set(read(path, time.time())) == {str(WEB), str(RAW)}


def test_what_turned_out_to_be_wrong_is_taken_out(path: str) -> None:
    save(path, pool(used=Known(5.0, 5.0)), pool(RAW, raw=Known(9.0, 9.0)))
    save(path, pool())
    assert set(read(path, time.time())) == {str(RAW)}


def test_a_limit_that_hardly_changed_is_not_written_again_and_one_that_did_is(path: str) -> None:
    save(path, pool(used=Known(5.0, 5.2)))
    before = os.stat(path).st_ino
    save(path, pool(used=Known(5.1, 5.3)))
    assert os.stat(path).st_ino == before
    save(path, pool(used=Known(6.0, 6.2)))
    assert os.stat(path).st_ino != before
    assert StateFile(path).recall(WEB) == {"used": Known(6.0, 6.2)}


def test_a_limit_that_still_holds_is_not_forgotten(path: str) -> None:
    week_ago = time.time() - 6 * 86400
    write(path, {str(WEB): {"used": (Known(5.0, 5.0), week_ago)}}, week_ago)
    save(path, pool(used=Known(5.0, 5.0)))
    ((_, learned),) = read(path, time.time())[str(WEB)].values()
    assert learned > time.time() - 60


def test_what_is_too_old_is_forgotten_and_so_is_what_is_from_the_future(path: str) -> None:
    ages = {"new": 0.0, "old": state.KEPT + 1, "ahead": -state.KEPT - 1}
    write(path, {name: {"used": (Known(5.0, 5.0), NOW - age)} for name, age in ages.items()}, NOW)
    assert set(read(path, NOW)) == {"new"}


def test_the_origins_learned_last_are_kept_up_to_a_bound(path: str) -> None:
    many = {f"http://h{n}:80": {"used": (Known(5.0, 5.0), NOW + n)} for n in range(1500)}
    write(path, many, NOW)
    assert list(read(path, NOW)) == list(many)[-state.ORIGINS :]


def test_the_memory_has_the_same_bound(path: str) -> None:
    file = StateFile(path)
    pools = [pool(origin("http", f"h{n}", 80), used=Known(5.0, 5.0)) for n in range(1200)]
    asyncio.run(file.close(pools))
    asyncio.run(file.close(pools[:1]))
    assert len(file._limits) <= state.ORIGINS + 1


def test_news_are_written_while_it_runs_but_not_at_once(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first look finds nothing, news that come then wait for their time, and go to the disk in
    another thread."""
    news = pool()
    times = iter([0.0, 0.0, 10.0, 31.0, 31.0])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        file = StateFile(path)
        monkeypatch.setattr(loop, "time", lambda: next(times))
        file.look([news], loop)
        news.recall({"used": Known(5.0, 5.0)})
        file.look([news], loop)
        assert not os.path.exists(path)  # noqa: ASYNC240 - that is what is to be seen
        file.look([news], loop)
        monkeypatch.undo()
        await file.close([news])
        assert StateFile(path).recall(WEB) == {"used": Known(5.0, 5.0)}

    asyncio.run(main())


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────


def entry(lowest: object = 5.0, highest: object = 5.0, learned: object = NOW) -> dict[str, object]:
    return {"used": {"lowest": lowest, "highest": highest, "learned": learned}}


def document(**origins: object) -> str:
    return json.dumps({"version": 1, "origins": origins})


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{oops",
    "cut": document(a=entry()).encode()[:-20],
    "not UTF-8": b'{"version": 1, "origins": {"\xff": {}}}',
    "another version": b'{"version": 2, "origins": {}}',
    "no object": b"[]",
    "origins are no object": b'{"version": 1, "origins": [1]}',
    "too deep": b"[" * 200_000,
    "too large": b" " * (state.LARGEST + 1),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_made_out_is_said_once_and_replaced(
    path: str, content: bytes, said: list[tuple[str, dict[str, Any]]]
) -> None:
    Path(path).parent.mkdir(parents=True)
    Path(path).write_bytes(content)
    file = StateFile(path)
    assert file.recall(WEB) == {}
    ((name, fields),) = said
    assert (name, fields["path"]) == ("state_unreadable", path)
    assert fields["reason"].isprintable()
    asyncio.run(file.close([pool(used=Known(5.0, 5.0))]))
    assert StateFile(path).recall(WEB) == {"used": Known(5.0, 5.0)}
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_read(path: str, kind: str, said: list[tuple[str, object]]) -> None:
    """Nor waited for: a pipe that nobody writes to, a device that never ends."""
    Path(path).parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink("/dev/zero", path)
    assert StateFile(path).recall(WEB) == {}
    assert [name for name, _ in said] == ["state_unreadable"]


@pytest.mark.parametrize("where", ["file/limits.json", "folder"])
def test_where_nothing_can_be_written_is_said_once(
    tmp_path: Path, where: str, said: list[tuple[str, dict[str, Any]]]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    path = str(tmp_path / where)
    file = StateFile(path)
    said.clear()
    for _ in range(3):
        asyncio.run(file.close([pool(used=Known(5.0, 5.0))]))
    ((name, fields),) = said
    assert (name, fields["path"]) == ("state_unwritable", path)
    assert fields["reason"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "full"]


WRONG: list[object] = [
    entry(0.0),
    entry(-5.0),
    entry(float("nan")),
    entry(inf, inf),
    entry(10**400, 10**401),
    entry(1e6, 1e6),
    entry(5.0, 4.0),
    entry("5", 5.0),
    entry(True, 5.0),
    entry(None),
    entry(5.0, 5.0, "today"),
    entry(1e-9, 5.0),
    {"used": 5.0},
    {"used": []},
    {"other": entry()["used"]},
    {},
    5,
    None,
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_one_wrong_entry_is_left_out_and_the_others_hold(path: str, wrong: object) -> None:
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text(document(a=wrong, b=entry()))
    assert read(path, NOW) == {"b": {"used": (Known(5.0, 5.0), NOW)}}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*state.KINDS, *state.FIELDS, "a"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=3), anything, max_size=3))
@example({"a": entry(0.5, 999_999.0)})
def test_whatever_the_file_says_pools_end_up_with_a_limit_they_could_have_learned(
    tmp_path: Path, origins: dict[str, object]
) -> None:
    file = tmp_path / "limits.json"
    file.write_text(document(**origins))
    for kinds in read(str(file), NOW).values():
        for known, _ in kinds.values():
            limit = IdleLimit()
            limit.recall(known)
            assert 0.5 <= limit.seconds < 1e6
            assert 0 < limit.safe(0.0) < limit.seconds < limit.probe_at
            write(str(file), {"x": kinds}, NOW)


def test_a_write_that_fails_half_way_leaves_the_old_file(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, pool(used=Known(5.0, 5.0)))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write(path, {}, time.time())
    monkeypatch.undo()
    assert StateFile(path).recall(WEB) == {"used": Known(5.0, 5.0)}
    assert os.listdir(Path(path).parent) == ["limits.json"]
