"""What one scrape shows: read from the pools when somebody asks."""

from math import inf

from warmproxy.metrics import Gauges, Sample
from warmproxy.net.client import Clients
from warmproxy.net.housekeeper import Waiter
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.pool.registry import Registry, tallies
from warmproxy.reload import Reloads


def sample(
    registry: Registry[UpstreamConnection, Waiter],
    clients: Clients,
    reloads: Reloads,
    loop_lag: float,
    now: float,
) -> Sample:
    """`loop_lag` in seconds; `now` by the loop's clock."""
    gauges: dict[str, Gauges] = {"other": Gauges()}
    for pool in registry:
        pool.account(now)
        limits = pool.idle_limits.items()
        here = Gauges(
            pool.fresh,
            pool.used,
            pool.active,
            pool.dialling,
            pool.waiting,
            pool.target_idle(now),
            tuple((kind, lim.seconds) for kind, lim in limits if lim.seconds < inf),
        )
        if pool.origin in registry.configured:
            gauges[str(pool.origin)] = here
        else:
            gauges["other"] += here
    return Sample(
        tallies(registry.configured, [(p.origin, p.tally) for p in registry], registry.forgotten),
        gauges,
        clients=len(clients.open),
        tunnels=sum(client.is_tunnel for client in clients.open),
        loop_lag=loop_lag,
        reload_is_good=reloads.is_good,
        reload_good_at=reloads.good_at,
    )
