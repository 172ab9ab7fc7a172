"""policy.repeat: floods become a count, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from warmproxy.policy import repeat
from warmproxy.policy.repeat import QUIET, Repeats


def test_the_first_are_written_and_the_others_counted() -> None:
    """`most` lines at once; the last of the others, with their number, when the time is over."""
    repeats = Repeats[str]()
    heard = [repeats.hear("a", "x", 2, f"line {i}", float(i)) for i in range(5)]
    assert heard == [[("line 0", 0)], [("line 1", 0)], [], [], []]
    assert repeats.due(QUIET - 0.1) == []
    assert repeats.due(QUIET) == [("line 4", 3)]
    assert repeats.due(3 * QUIET) == repeats.rest() == []


def test_a_line_that_tells_of_others_begins_another_span() -> None:
    """What goes on for long is one line in each span, not one at its end and one at its start."""
    repeats = Repeats[int]()
    told = [told for i in range(100) for told in repeats.hear("a", "x", 1, i, float(i))]
    assert told == [(0, 0), (29, 29), (59, 30), (89, 30)]
    assert repeats.rest() == [(99, 10)]


def test_another_event_of_the_group_has_the_counts_told_before_it() -> None:
    """The order within a group is that of what happened; other groups are not concerned."""
    repeats = Repeats[str]()
    for line in ("failed 1", "failed 2", "failed 3"):
        repeats.hear("a", "failed", 1, line, 0.0)
    assert repeats.hear("b", "worked", 1, "b worked", 1.0) == [("b worked", 0)]
    assert repeats.hear("a", "worked", 1, "worked", 1.0) == [("failed 3", 2), ("worked", 0)]


def test_what_is_remembered_has_a_cap_and_what_is_forgotten_is_told(monkeypatch) -> None:
    """A client that makes up names costs no memory, and no line."""
    monkeypatch.setattr(repeat, "REMEMBERED", 2)
    repeats = Repeats[str]()
    for key in "aab":
        repeats.hear(key, "x", 1, key, 0.0)
    assert repeats.hear("c", "x", 1, "c", 1.0) == [("a", 1), ("c", 0)]
    assert repeats.hear("d", "x", 1, "d", 1.0) == [("d", 0)]


lines = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0, 40))


@given(st.lists(lines, max_size=60), st.integers(1, 3))
def test_the_counts_always_add_up(heard: list[tuple[str, str, float]], most: int) -> None:
    """Whatever comes when: each line is written, or counted by exactly one that is, and the last
    that is told of a group is the last that came."""
    repeats = Repeats[tuple[int, str, str]]()
    now, told = 0.0, []
    for number, (key, event, pause) in enumerate(heard):
        now += pause
        told += repeats.hear(key, event, most, (number, key, event), now)
    told += repeats.rest()
    for key, event in {(key, event) for key, event, _ in heard}:
        came = sum((k, e) == (key, event) for k, e, _ in heard)
        assert sum(max(1, times) for (_, k, e), times in told if (k, e) == (key, event)) == came
    for key in {key for key, _, _ in heard}:
        numbers = [number for (number, k, _), _ in told if k == key]
        assert numbers == sorted(numbers)
        assert numbers[-1] == max(i for i, (k, _, _) in enumerate(heard) if k == key)
