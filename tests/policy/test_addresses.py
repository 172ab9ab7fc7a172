"""At which addresses of a name connections may stay."""

from warmproxy.policy.addresses import CALM, LONGEST, PATIENCE, Addresses


def test_an_address_that_is_no_longer_named_has_gone() -> None:
    """The first change is believed at once; what is new is there at once."""
    name = Addresses()
    assert name.answered(["a", "b"], 0.0) == {"a", "b"}
    assert name.answered(["b", "a"], 30.0) == {"a", "b"}
    assert name.answered(["b", "c"], 60.0) == {"b", "c"}


def test_a_name_that_gives_its_addresses_out_in_turns_comes_to_rest() -> None:
    """After one replacement, connections stay at all addresses that are named now and then."""
    name = Addresses()
    kept = [name.answered([("a", "b", "c")[i % 3]], 15.0 * i) for i in range(1000)]
    assert kept[:2] == [{"a"}, {"b"}]
    assert all(places == {"a", "b", "c"} for places in kept[4:])


def test_a_name_with_ever_new_addresses_is_believed_later_and_later() -> None:
    """Each time an address goes the next one is missed for twice as long, up to an hour."""
    name = Addresses()
    missed = []
    for i in range(10_000):
        now = 10.0 * i
        kept = name.answered([str(i)], now)
        missed.append(max(i - int(address) for address in kept) * 10.0)
    assert missed[:3] == [0.0, 0.0, 10.0]
    assert [max(missed[:n]) for n in (8, 15, 28)] == [PATIENCE, 2 * PATIENCE, 4 * PATIENCE]
    assert missed[-1] == max(missed) == LONGEST


def test_after_a_calm_time_a_change_is_believed_at_once_again() -> None:
    """Two moves of a name that lie apart are both followed; the second of two that do not is
    followed after a while."""
    name = Addresses()
    name.answered(["a"], 0.0)
    assert name.answered(["b"], 10.0) == {"b"}
    assert name.answered(["c"], 20.0) == {"b", "c"}
    assert name.answered(["c"], 10.0 + PATIENCE) == {"b", "c"}
    assert name.answered(["c"], 10.1 + PATIENCE) == {"c"}
    quiet = 10.1 + PATIENCE + CALM
    assert name.answered(["c"], quiet) == {"c"}
    assert name.answered(["d"], quiet + 1.0) == {"d"}
