"""How much of the time between two readings of two clocks the machine has slept."""

import pytest

from warmproxy.net.changes import Clocks, read_clocks, slept


@pytest.mark.parametrize(
    ("boot", "awake", "seconds"),
    [
        (1.0, 1.0, 0.0),  # one sweep
        (61.0, 61.0, 0.0),  # late, but awake
        (2.9, 1.0, 0.0),  # the readings lay apart
        (3.1, 1.0, 2.1),
        (28_801.0, 1.0, 28_800.0),
    ],
)
def test_sleep_is_what_only_one_clock_has_counted(boot, awake, seconds) -> None:
    """Time that both clocks count is no sleep, however long; nor is what may be an accident."""
    before = Clocks(5000.0, 300.0)
    after = Clocks(5000.0 + boot, 300.0 + awake)
    assert slept(before, after) == pytest.approx(seconds)


def test_the_real_clocks_agree_while_nobody_sleeps() -> None:
    """Two readings one after the other are no sleep, whatever happened before."""
    assert slept(read_clocks(), read_clocks()) == 0.0
