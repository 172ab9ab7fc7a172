"""The status page from what /pools says, without a daemon: text, order, charts, and that nothing
which came over the network can do more than be read."""

import random
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from warmproxy.admin import html
from warmproxy.admin.attention import Level, of_daemon, of_pool
from warmproxy.admin.history import KEPT, POINTS, STEP, History, Lately
from warmproxy.admin.html import page
from warmproxy.admin.pages import wants_html
from warmproxy.admin.table import Asked, asked
from warmproxy.admin.words import about, millis, safe, share, span
from warmproxy.observe import Observer
from warmproxy.origin import origin
from warmproxy.pool.registry import Registry
from warmproxy.settings import Settings, UpstreamSettings

POOL: dict[str, Any] = {
    "origin": "http://a.example:80",
    "configured": True,
    "verified": None,
    "target_idle": 4,
    "boosts": [],
    "fresh": 3,
    "used": 1,
    "active": 2,
    "dialling": 0,
    "waiting": 0,
    "idle_limits": {"fresh": 60.0, "used": None},
    "below_target_for": 0.0,
    "closes_at_once": False,
    "costly": False,
    "held_back": None,
    "last_close": {"reason": "upstream_eof", "ago": 3.2, "age": 60.0},
    "dial_seconds": {"mean": 0.0123, "recent": 0.02},
    "dial_failures": 0,
    "hits": 199,
    "misses": 1,
    "failed": 0,
    "saved_seconds": 2.5,
    "last_error": None,
}
DAEMON = {"version": "9.9", "uptime": 3725.0, "clients": 7, "tunnels": 2, "accepting": True}
NOTHING = Lately(0.0, [], [], [], [], [])


def drawn(
    *pools: dict[str, Any],
    how: Asked | None = None,
    lately: Lately = NOTHING,
    warm: Sequence[int] = (),
    **daemon: Any,
) -> str:
    pieces = page(how or Asked(), DAEMON | daemon, lately, [(p, warm) for p in pools])
    return b"".join(pieces).decode()


class Reader(HTMLParser):
    """The elements, each with its attributes, and the text of each cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "each element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br" and self.rows and "tr" in self.open:
            self.rows[-1][-1] += " "

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_a_row_says_all_there_is_to_know_of_an_origin() -> None:
    head, row = Reader(drawn(POOL)).rows
    assert dict(zip(head, row, strict=True)) == {
        "Origin": "http://a.example:80",
        "Warm": "■■■■ 4/4",
        "Last hour": "",
        "Fresh": "3",
        "Used": "1",
        "Active": "2",
        "Waiting": "0",
        "Hit ratio": "99.5 % of 200",
        "Dial": "12.3 ms lately 20 ms",
        "Saved": "2.50 s",
        "Idle limits": "fresh 60.0 s",
        "Last close": "upstream_eof 3 s ago, after 60.0 s",
        "Last error": "-",
    }


@pytest.mark.parametrize(
    ("warm", "target", "squares"),
    [
        (0, 4, "□□□□ 0/4"),
        (1, 4, "■□□□ 1/4"),
        (6, 4, "■■■■■■ 6/4"),
        (0, 0, " 0/0"),
        (1, 100, "■□□□□□□□ 1/100"),
        (99, 100, "■■■■■■■□ 99/100"),
        (100, 100, "■■■■■■■■ 100/100"),
    ],
)
def test_squares_are_full_only_where_the_pool_is(warm: int, target: int, squares: str) -> None:
    _, row = Reader(drawn(POOL | {"fresh": warm, "used": 0, "target_idle": target})).rows
    assert row[1] == squares


def test_the_head_says_what_it_is_worth_with_origins_that_are_no_more() -> None:
    gone = {"hits": 801, "misses": 199, "failed": 4, "saved_seconds": 57.5}
    text = drawn(POOL, forgotten=gone)
    for part in ("9.9</small>", "1 h 02 min", "<dd>60.0 s<", "<dd>83.3 %<", "<dd>1,204<"):
        assert part in text
    assert "Nothing needs attention" in text


FAILING = {
    "origin": "http://bad.example:80",
    "fresh": 0,
    "used": 0,
    "dial_failures": 3,
    "last_error": "bad.example:80 refused the connection",
}


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (FAILING, Level.BAD, "the last 3 dials failed: bad.example:80 refused the connection"),
        ({"held_back": {"reason": "it said 503", "seconds": 90.0}}, Level.WARN, "left alone for"),
        ({"held_back": {"reason": "it said 503", "seconds": 0}}, Level.WARN, "on probation"),
        ({"closes_at_once": True}, Level.WARN, "right after they are opened"),
        ({"used": 0, "below_target_for": 130.0}, Level.WARN, "3 of 4 warm, below its target for 2"),
        ({"waiting": 1}, Level.WARN, "1 request waits for a connection"),
        ({"costly": True}, Level.NOTE, "closes idle connections after 60.0 s: keeping 4 warm"),
    ],
)
def test_what_needs_attention_is_said_in_a_sentence(
    facts: dict[str, Any], level: Level, words: str
) -> None:
    """In the list above the table with the origin's name, but for what only costs, which is below
    the origin's row."""
    ((its_level, text),) = of_pool(POOL | facts)
    assert its_level is level
    assert words in text
    page_text = drawn(POOL | facts, POOL)
    assert words in page_text
    assert ("<li " in page_text) is (level > Level.NOTE)
    assert page_text.count(words) == 1


def test_a_pool_that_is_short_for_a_moment_is_no_news() -> None:
    assert of_pool(POOL | {"used": 0, "below_target_for": 20.0}) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"accepting": False}, "does not accept clients now"),
        ({"draining": True, "accepting": False}, "It is stopping"),
        ({"reload_is_good": False}, "The last reload failed"),
        ({"loop_lag": 0.25}, "250 ms late"),
        ({"silent": [2]}, "these do not answer: 2."),
        ({"authority_seconds_left": 5 * 86400}, "expires in 5 d: warmproxy ca rotate"),
        ({"authority_seconds_left": 0}, "has expired, so nobody is intercepted"),
    ],
)
def test_what_ails_the_daemon_is_said(facts: dict[str, Any], words: str) -> None:
    ((_, text),) = of_daemon(DAEMON | facts)
    assert words in text
    assert f"{words}" in drawn(**facts)


def test_the_worst_comes_first_and_a_click_sorts_otherwise() -> None:
    """?sort= sorts by a column, with a minus the other way round; the head of that column says so
    and links to the other."""
    worse = POOL | FAILING | {"hits": 0, "misses": 0}
    other = POOL | {"origin": "http://c.example:80", "saved_seconds": 9.0, "configured": False}

    def order(sort: str) -> str:
        rows = Reader(drawn(POOL, other, worse, how=Asked(sort=sort))).rows[1:]
        return "".join(row[0][7] for row in rows)

    assert [order(s) for s in ("", "origin", "-origin", "saved", "-saved")] == [
        "bac",
        "abc",
        "cba",
        "cab",
        "abc",
    ]
    heads = [a for tag, a in Reader(drawn(POOL, how=Asked(sort="saved"))).elements if tag == "th"]
    assert [head.get("aria-sort") for head in heads].count("descending") == 1
    assert 'href="?sort=-saved"' in drawn(POOL, how=Asked(sort="saved"))


@pytest.mark.parametrize(
    ("query", "how"),
    [
        ("", Asked()),
        ("sort=-hits&all=1&refresh=0", Asked("-hits", True, 0)),
        ("refresh=99999", Asked(refresh=3600)),
        ("sort=%3Cscript%3E&refresh=-1&all=x&x=y", Asked()),
        ("&".join(["a=b"] * 99), Asked()),
    ],
)
def test_what_is_asked_for_is_read_and_nonsense_is_not(query: str, how: Asked) -> None:
    assert asked(query) == how
    assert asked(how.link().partition("?")[2]) == how


def test_it_refreshes_itself_unless_told_not_to() -> None:
    assert '<meta http-equiv="refresh" content="5">' in drawn(POOL)
    still = drawn(POOL, how=Asked(refresh=0))
    assert "http-equiv" not in still
    assert '<a href="/">start again</a>' in still


EVIL = """"><script>alert(1)</script>'&\x1b[2J\u202e<img src=//evil.example onerror=x>"""


def test_names_and_errors_are_text_whatever_they_hold() -> None:
    """A hostile origin, error, reason or kind makes no element, attribute or entity."""
    hostile = POOL | {
        "origin": f"http://{EVIL}:80",
        "last_error": EVIL * 9,
        "dial_failures": 1,
        "last_close": {"reason": EVIL, "ago": 1.0, "age": 1.0},
        "held_back": {"reason": EVIL, "seconds": 9.0},
        "boosts": [{"count": 1, "seconds_left": 9.0, "why": EVIL}],
        "idle_limits": {EVIL: 5.0},
    }
    text = drawn(hostile, hostile | {"configured": False}, version=EVIL)
    plain = drawn(POOL | FAILING, POOL | FAILING | {"configured": False})
    known = {tag for tag, _ in Reader(plain).elements}
    reader = Reader(text)
    assert {tag for tag, _ in reader.elements} == known
    names = {name for _, attributes in reader.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "src"]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert any("<script>alert(1)</script>" in row[0] for row in reader.rows)


def test_nothing_is_loaded_from_elsewhere_and_no_style_is_inline() -> None:
    """Each address is the page's own; what the policy admits is the one style sheet's hash."""
    lately = Lately(60.0, [0.0, 3.0], [0, 9], [0, 9], [3, 4], [4, 4])
    for tag, attributes in Reader(drawn(POOL, lately=lately, warm=[1, 2])).elements:
        address = attributes.get("href") or attributes.get("src") or ""
        assert address[:1] in ("", "?", "/", "#") or (tag, address[:5]) == ("link", "data:")
        assert not address.startswith("//")
        assert tag not in ("script", "img", "iframe", "object", "form")
        assert "style" not in attributes
    assert "default-src 'none'" in html.FIELDS
    assert "unsafe" not in html.FIELDS


def test_a_long_page_is_short_unless_all_is_asked_for() -> None:
    """100 of 1,000 rows and a link to the others, those with trouble first; no piece of it takes
    long, nor is any piece large."""
    pools = [POOL | {"origin": f"http://h{i}.example:80"} for i in range(999)] + [POOL | FAILING]
    short, whole = drawn(*pools), drawn(*pools, how=Asked(all=True))
    assert len(Reader(short).rows) == 101
    assert "bad.example" in Reader(short).rows[1][0]
    assert "Show all 1000" in short
    assert len(Reader(whole).rows) == 1001
    took, sizes = [], []
    pieces: Iterator[bytes] = page(Asked(all=True), DAEMON, NOTHING, [(p, ()) for p in pools])
    while True:
        before = time.process_time()
        piece = next(pieces, None)
        took.append(time.process_time() - before)
        if piece is None:
            break
        sizes.append(len(piece))
    assert max(sizes) < 20_000
    assert max(took) < 0.05  # of this process alone; about 1 ms on an idle machine
    assert sum(took) / len(took) < 0.005


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML ; q=0.5", True),
        ("*/*", False),
        ("", False),
        ("text/html;q=0, text/plain", False),
        ("application/json, text/plain", False),
    ],
)
def test_browsers_get_html_and_others_what_they_had(accept: str, wanted: bool) -> None:
    assert wants_html(accept) is wanted


def test_numbers_are_said_shortly() -> None:
    said = [span(0.5), span(59.0), span(125), span(7500), span(400000), about(59), about(200)]
    assert said == ["0.50 s", "59.0 s", "2 min 05 s", "2 h 05 min", "4 d 15 h", "59 s", "3 min"]
    assert [millis(0.0123), millis(2.5)] == ["12.3 ms", "2.5 s"]
    assert [share(0, 0), share(5, 0), share(99999, 1), share(1, 99999), share(0, 1)] == [
        "-",
        "100 %",
        "99.9 %",
        "0.1 %",
        "0 %",
    ]
    assert safe("a\nb\x9b\u202ec") == "a?b??c"


# ── history ──────────────────────────────────────────────────────────────────────────────────

KNOWN, ALSO = origin("http", "known.example", 80), origin("http", "also.example", 80)


@pytest.fixture
def registry() -> Registry[Any, Any]:
    upstream = (UpstreamSettings(url="http://known.example", warm=2),)
    return Registry(Settings(upstream=upstream), Observer(), random.random, 0.0, lambda _: {})


def test_the_history_is_of_the_last_hour_and_no_longer(registry: Registry[Any, Any]) -> None:
    """A point for each of up to 60 minutes; rates are of what came in that time; where nothing was
    asked for there is no hit ratio."""
    past = History(0.0)
    pool = registry.find(KNOWN)
    assert pool is not None
    for i in range(1, 2 * KEPT + 1):
        if i > KEPT:
            pool.tally.acquires["fresh"] += 15
            pool.tally.acquires["dialled"] += 5
            pool.tally.acquires["failed"] += 1
        past.look(registry, i * STEP)
        if i == KEPT:
            assert past.lately().hit_ratio == [None] * POINTS
    lately = past.lately()
    assert lately.per_second == [2.1] * POINTS
    assert lately.hit_ratio == [0.75] * POINTS
    assert (lately.seconds, lately.warm[-1], lately.target[-1]) == (KEPT * STEP, 0, 2)
    assert past.warm_of(KNOWN) == [0] * POINTS
    assert past.below_for(KNOWN, 2 * KEPT * STEP) == (2 * KEPT - 1) * STEP


def test_a_sample_is_taken_each_ten_seconds_however_often_it_looks(
    registry: Registry[Any, Any],
) -> None:
    past = History(0.0)
    for second in range(1, 62):
        past.look(registry, second + 0.003 * second)
    assert len(past.lately().per_second) == 7


def test_a_pool_that_went_and_came_again_counts_from_nothing(registry: Registry[Any, Any]) -> None:
    """No negative rates, no memory of pools that are no more, and of those that are not configured
    no chart."""
    past = History(0.0)
    for asked_for, now in ((50, 10.0), (3, 20.0)):
        pool = registry.use(ALSO, now)
        pool.tally.acquires["used"] = asked_for
        past.look(registry, now)
        registry.let_go(pool)
    past.look(registry, 30.0)
    assert past.lately().per_second == [5.0, 0.3, 0.0]
    assert past.warm_of(ALSO) == []
    assert list(past._tracks) == [KNOWN]
