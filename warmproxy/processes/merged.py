"""What several processes say, as one. No sockets here."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import zip_longest
from operator import itemgetter
from typing import Any

from warmproxy.admin.pages import Said, forgotten
from warmproxy.observe import Tally
from warmproxy.sample import Gauges, Sample

Rule = Callable[[list[Any]], Any]


def merge_tallies(parts: Iterable[dict[str, Tally]]) -> dict[str, Tally]:
    """Sums, by origin."""
    found: dict[str, Tally] = {}
    for part in parts:
        for origin, tally in part.items():
            found.setdefault(origin, Tally()).add(tally)
    return found


def merge_samples(
    samples: list[Sample], gone: dict[str, Tally], processes: dict[str, tuple[bool, int]]
) -> Sample:
    """The sums; of what is learned the lowest, of the loops' lag the highest. `gone` is what
    processes have counted that are no more, `processes` as in Sample."""
    gauges: dict[str, Gauges] = {}
    for sample in samples:
        for origin, now in sample.gauges.items():
            before = gauges.get(origin, Gauges())
            limits = dict(sorted((*before.idle_limits, *now.idle_limits), key=itemgetter(1))[::-1])
            gauges[origin] = replace(before + now, idle_limits=tuple(limits.items()))
    return Sample(
        merge_tallies([*(sample.tallies for sample in samples), gone]),
        gauges,
        clients=sum(sample.clients for sample in samples),
        tunnels=sum(sample.tunnels for sample in samples),
        loop_lag=max((sample.loop_lag for sample in samples), default=0.0),
        reload_is_good=all(sample.reload_is_good for sample in samples),
        authority_ends=_present(min)([sample.authority_ends for sample in samples]),
        processes=processes,
    )


def merge_pools(parts: Iterable[list[Said]]) -> list[Said]:
    """What /pools says of each origin, in the order in which they come first."""
    by_origin: dict[str, list[Said]] = {}
    for part in parts:
        for pool in part:
            by_origin.setdefault(pool["origin"], []).append(pool)
    return [merge_pool(pools) for pools in by_origin.values()]


def merge_pool(pools: list[Said]) -> Said:
    """Numbers are added up, texts are the first's that has one, but for what _RULES has."""
    return {name: _RULES.get(name, _merge)([pool[name] for pool in pools]) for name in pools[0]}


def merge_abouts(abouts: list[Said], gone: dict[str, Tally]) -> Said:
    """What the daemon as a whole says of itself; `gone` as above."""
    ended = Tally()
    for tally in gone.values():
        ended.add(tally)
    rest = {name: [about["forgotten"][name] for about in abouts] for name in forgotten(ended)}
    return {
        "uptime": max((about["uptime"] for about in abouts), default=0.0),
        "clients": sum(about["clients"] for about in abouts),
        "tunnels": sum(about["tunnels"] for about in abouts),
        "accepting": all(about["accepting"] for about in abouts),
        "reload_is_good": all(about["reload_is_good"] for about in abouts),
        "loop_lag": max((about["loop_lag"] for about in abouts), default=0.0),
        "authority_seconds_left": _present(min)(
            [about["authority_seconds_left"] for about in abouts]
        ),
        "forgotten": {
            name: round(sum(values) + forgotten(ended)[name], 6) for name, values in rest.items()
        },
        "history": _histories([about["history"] for about in abouts]),
    }


def _histories(histories: list[Said]) -> Said:
    """Sums; a process that began later adds to the last of them."""
    seconds = max((history["seconds"] for history in histories), default=0.0)
    lists = ("per_second", "hits", "misses", "warm", "target")
    return {"seconds": seconds} | {n: _aligned([h[n] for h in histories]) for n in lists}


def _aligned(lists: list[list[Any]]) -> list[Any]:
    """The sums of what was at the same time: the last of each is now."""
    backwards = zip_longest(*(reversed(values) for values in lists), fillvalue=0)
    return [round(sum(values), 6) for values in backwards][::-1]


def _merge(values: list[Any]) -> Any:
    found = [value for value in values if value is not None]
    match found:
        case [bool() | str(), *_]:
            return found[0]
        case [int() | float(), *_]:
            total = sum(found)
            return round(total, 6) if isinstance(total, float) else total
        case [dict(), *_]:
            names = dict.fromkeys(name for value in found for name in value)
            return {name: _merge([value.get(name) for value in found]) for name in names}
    return None


def _present(pick: Callable[..., Any]) -> Rule:
    """Of what is not None the one that `pick` takes."""

    def rule(values: list[Any]) -> Any:
        found = [value for value in values if value is not None]
        return pick(found) if found else None

    return rule


def _limits(values: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Of each kind the lowest that is known."""
    kinds = dict.fromkeys(kind for value in values for kind in value)
    return {kind: _present(min)([value.get(kind) for value in values]) for kind in kinds}


def _boosts(values: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """By why: counts add up, the longest holds."""
    found: dict[str, dict[str, Any]] = {}
    for boost in (boost for value in values for boost in value):
        so_far = found.setdefault(boost["why"], {**boost, "count": 0})
        so_far["count"] += boost["count"]
        so_far["seconds_left"] = max(so_far["seconds_left"], boost["seconds_left"])
    return list(found.values())


def _dials(values: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of what is known, and the slowest of the last."""
    means = [value["mean"] for value in values if value["mean"] is not None]
    mean = round(sum(means) / len(means), 6) if means else None
    return {"mean": mean, "recent": max(value["recent"] for value in values)}


_RULES: dict[str, Rule] = {
    "configured": any,
    "intercepted": any,
    "oldest_age": max,
    "idle_limits": _limits,
    "boosts": _boosts,
    "below_target_for": max,
    "closes_at_once": any,
    "costly": any,
    "warm_lately": _aligned,
    "dial_seconds": _dials,
    "held_back": _present(lambda found: max(found, key=lambda held: held["seconds"])),
    "last_close": _present(lambda found: min(found, key=lambda last: last["ago"])),
}
