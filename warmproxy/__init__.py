"""warmproxy: a local forward proxy that hands out upstream connections which are already open.

This page is the map of the house.

Floors. A module imports only from floors below its own, or from earlier modules of its folder:

    cli, tools     arguments -> Settings -> service; programs beside the daemon
    clients        adapters for other programs' HTTP libraries; imports nothing of the daemon
    4  processes   a parent and several services, where the settings ask for them
       service     listens, sweeps, drains; wiring makes the parts that it puts together
       reload      SIGHUP: other settings for the parts; upgrade: SIGUSR2, the next process
       crowd       pauses accepting before descriptors run out
       sample      what one scrape shows; hello: what is said when the doors are open
       state       learned idle limits -> a file, over a restart
       control     listeners and what was learned -> the process that takes over
       systemd     sd_notify, passed sockets, watchdog
       heap        what malloc keeps of freed memory -> the system
       warming     holds more for a while: windows of the settings, POST /warm
       admin       the status page, /metrics /healthz /readyz /pools /warm
       metrics     a sample -> Prometheus
       sample      the pools -> what one scrape shows
       log         one line per event
    3  net         asyncio lives here: client, prime, housekeeper, dialer, resolver, upstream,
                   tunnel, splice, acks, tls, intercept; authority, private: our CA and its files
    2  pool        which connections there are and should be: OriginPool, Registry   (no HTTP)
       protocol    bytes -> heads, framing, targets; Exchange: events in, actions out (no sockets)
    1  policy      pure judgement: sizing, schedule, retire, learn, backoff, retry, priming, guard,
                   access, shares, repeat, interception
    0  loading     flag > environment > file > default, every problem at once
       settings, observe, errors, origin, cron, toml_lines: the vocabulary

Floors 0-2 know no loop, socket, clock or chance: time is an argument, randomness too.

Words. A *client* asks, an *upstream* answers; an *origin* is what upstream sockets are
interchangeable by, and has one *pool*. A connection is *dialled*, then *idle* (*fresh*: it never
carried a request; *used*: it did) or *active* (leased). *Warm* is established and idle;
*target_idle* is how many warm there should be. An acquire that is served at once is a *hit*, one
that waits for a dial a *miss*. We *evict*, they *close*; to *retire* is to evict for age, after
the successor is up. An *exchange* is one request and its response; a *tunnel* is CONNECT.

One request. net/client reads bytes -> protocol/exchange parses, judges and routes them and asks to
Acquire -> net/housekeeper takes an idle connection from the pool, tests that it lives, and hands
out a Lease, all in one call stack (a hit) or later (a miss) -> the head and the body's first bytes
go out in one write -> what comes back passes through the exchange to the client, or (net/splice)
from socket to socket where it is long, each side paused while the other is slow -> both done: the
lease is released, to the first waiter or to its shelf.

One re-dial. The upstream closes an idle connection -> net/upstream hears it in the same turn of
the loop, says why (end, reset, TLS alert, bytes that nobody asked for) and closes its side ->
the pool notes the age, which teaches the upstream's idle limit -> `plan` computes what is missing
-> the housekeeper dials, within the dial budget -> the new connection goes to a waiter or its
shelf. Where the limit is known the successor is dialled before the old one goes.

One interception. A CONNECT to an origin whose owner asked for it -> the exchange answers it and
asks to Intercept -> net/intercept shakes hands with the client, by a leaf that net/authority signed
-> the same ClientConnection goes on inside, with an Exchange that stands for the origin; or it is
refused, which policy/interception remembers, and the next CONNECT is a tunnel.

One reload. SIGHUP -> settings and the files that they name are read, in a thread -> `wiring` makes
all that follows from them (Rules), and new listeners; until here anything wrong changes nothing ->
in one turn of the loop each part adopts its share: pools stay, and where connections are opened in
another way from now on (a TLS profile, a certificate, source_address) a pool is *renewed*: what is
idle is replaced before it goes, what is active is not given back, a dial under way is not used.

One takeover. The new process asks the old one's control socket -> it gets the very listening
sockets, and dials -> all is warm: it accepts, and says so -> the old one stops accepting, answers
whoever is connected once more, and leaves.
"""

__version__ = "0.9.0"
