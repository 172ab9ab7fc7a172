"""Lays the clients' books beside the origin's and finds what must not be.

**Fatal, whatever the faults were**: an answer, or part of one, given for another request; a POST
seen twice by the origin (in whole or in part, whatever its client was told); an idempotent request
seen more than twice, or a second time although the first try was not on a used connection or had
got a byte of its response; a replay on a used connection; a request behind an answer that ended
its client's connection and yet forwarded; a request or response body that is not its own; a
truncated answer that looked whole; a request that never ended.

**Lost**: a GET, PUT or DELETE whose client stayed and got no answer of the origin's, although one
replay could have served it. That is: *the first try died on a used connection before any byte of
its response* (1xx included), all of the request could be kept (its body is at most max_buffer),
and *no replay was made*, or it was made and did not get as far as a fresh connection. Not lost is
what a fault hit on a connection that was never used before (the rule of `policy/retry`: that says
something about the origin, not about the race), what a second fault hit in the replay, and what
ended inside its response. The origin's books say how each try that it read ended. A try that it
never read left no trace but the connection that it ended: such a failure is excused by a
never-used connection that this origin ended between the question and the answer, or by a restart
in that time, and each such connection excuses one request.

**Unexplained**: any other failure for which the origin's books have no reason. A connection that
could not be dialled is never one, once its origin has worked: restarts take less than
`dial_retry_for`. Neither is a wait that was too long (503), an answer cut short that the origin
sent whole (unless it reset the connection right after), or an end without an answer. A 408 that
the origin sent to an idle connection and that crossed a request on the wire is an answer to it as
far as HTTP can tell: counted as stray, and passed on.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.script import IDEMPOTENT, INTERIM_LIMIT, MAX_BUFFER

Line = dict[str, Any]

SLACK = 0.05
"""Seconds by which the processes may note one event apart."""


@dataclass
class Verdict:
    """What was found, and the figures."""

    violations: list[str] = field(default_factory=list)
    lost: int = 0
    posts_twice: int = 0
    foreign: int = 0
    figures: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


class _Case:
    """One request: what its client says, and every try that the origin saw."""

    def __init__(self, ask: Line, tries: list[Line]) -> None:
        self.ask = ask
        self.tries = tries
        self.number: int = ask["id"]
        self.idempotent = ask["method"] in IDEMPOTENT
        self.forwarded = ask["kind"] != "tunnel"
        self.pool = (ask["port"], self.forwarded)

    @property
    def repeatable(self) -> bool:
        """Repeating it does no harm, and all of it can be kept for that."""
        return self.idempotent and bool(self.ask["size"] <= MAX_BUFFER)

    def __str__(self) -> str:
        return f"{self.ask}; tries: {self.tries}"


def _was_cut(case: _Case) -> bool:
    """The origin ended inside its response to this request."""
    return bool(case.tries) and case.tries[-1]["trick"] == "cut" and case.tries[-1]["sent"] > 0


def _died_delimited(case: _Case) -> bool:
    """The origin's process died in a response that only the connection's end delimits."""
    last = case.tries[-1] if case.tries else None
    return last is not None and last["framing"] == "close" and last["end"] == "restart:die"


class Judge:
    """Judges one run; `verdict` has the result."""

    def __init__(self, asks: list[Line], origin: list[Line]) -> None:
        self.verdict = Verdict()
        tries: dict[int, list[Line]] = defaultdict(list)
        for line in origin:
            if line["k"] == "try":
                tries[line["id"]].append(line)
        for of_one in tries.values():
            of_one.sort(key=lambda line: line["at"])
        self._tries = tries
        self._ends = [line for line in origin if line["k"] == "end"]
        harsh = ("reset", "die")
        self._reset = {e["conn"] for e in self._ends if e["how"].partition(":")[2] in harsh}
        """Connections whose unsent or unread bytes were thrown away."""
        self._restarts = [line for line in origin if line["k"] == "restart"]
        self._cases = {ask["id"]: _Case(ask, tries[ask["id"]]) for ask in asks}
        self._first_seen: dict[tuple[int, bool], float] = {}
        """When each of the daemon's pools first led a request to its origin."""
        for case in self._cases.values():
            for line in case.tries:
                first = min(line["at"], self._first_seen.get(case.pool, line["at"]))
                self._first_seen[case.pool] = first
        self._unread: list[_Case] = []
        """Failures of requests that the origin never read, or whose replay it never read."""
        for case in self._cases.values():
            self._judge(case)
        self._excuse_unread()
        self._count()

    # ── one request ──────────────────────────────────────────────────────────────────────────

    def _judge(self, case: _Case) -> None:
        ask = case.ask
        self._judge_tries(case)
        match ask["outcome"]:
            case "whole":
                if not case.tries or not case.tries[-1]["sent"]:
                    self._says("answered, but the origin sent nothing", case)
                if ask["retried"] and ask["method"] == "POST":
                    self._says("a POST was retried", case)
            case "left" | "behind":
                pass
            case "foreign":
                self.verdict.foreign += 1
                self._says("given the answer to another", case)
            case "short" if _died_delimited(case):
                self.verdict.figures["cut"]["by a dying origin, which HTTP cannot tell"] += 1
            case "truncated":
                self._judge_cut(case)
            case "own":
                self._judge_own(case)
            case "stray":
                # a 408 for the idle connection crossed the request on the wire: an answer, to HTTP
                if ask["status"] != 408:
                    self._says("a stray answer that is no 408", case)
            case "none" if ask["what"] == "reset" and _was_cut(case):
                pass  # cut short while the client still sent, which is told by a reset alone
            case "none" if case.forwarded:
                before = self._cases.get(ask["before"])
                early = before is not None and any(t["trick"] == "early" for t in before.tries)
                if not early or case.tries:
                    self._says("no answer at all", case)
            case "none" | "cut_head" if not case.forwarded:
                pass  # through a tunnel a client sees the origin as it is
            case "hung" if not case.forwarded and any(t["trick"] == "stall" for t in case.tries):
                pass  # and waits for it as long as it likes
            case other:
                self._says(f"outcome {other}", case)

    def _judge_tries(self, case: _Case) -> None:
        tries = case.tries
        if any(line["wrong"] for line in tries):
            self._says("the origin got a body that is not this request's", case)
        if case.ask["outcome"] == "behind" and tries:
            self._says("forwarded behind an answer that ended the connection", case)
        if len(tries) < 2:
            return
        if not case.idempotent:
            self.verdict.posts_twice += 1
            self._says("a POST was sent twice", case)
        elif not case.forwarded or len(tries) > 2:
            self._says(f"sent {len(tries)} times", case)
        elif tries[0]["nth"] == 1:
            self._says("repeated after a first try on a fresh connection", case)
        elif tries[0]["sent"] or tries[0]["interim"]:
            self._says("repeated after the response had begun", case)
        elif tries[1]["nth"] != 1:
            self._says("repeated on a used connection", case)

    def _judge_cut(self, case: _Case) -> None:
        last = case.tries[-1] if case.tries else None
        if last is not None and last["end"] == "answered" and last["conn"] in self._reset:
            self.verdict.figures["cut"]["by a reset after the last byte"] += 1
        elif last is None or last["end"] == "answered":
            self._says("truncated, but the origin sent it whole", case)
        elif last["end"] == "peer" and last["trick"] not in ("stall", "early"):
            self._says("truncated, and the origin did not do it", case)

    def _judge_own(self, case: _Case) -> None:
        ask, token = case.ask, case.ask["token"]
        last = case.tries[-1] if case.tries else None
        if token == "connection_terminated" and "accepted and closed" not in ask["details"]:
            self._judge_terminated(case, last)
        elif token == "http_response_timeout":
            if last is None or last["trick"] != "stall":
                self._says("timed out, but the origin did not stall", case)
        elif token == "http_protocol_error":
            if last is None or last["interim"] <= INTERIM_LIMIT:
                self._says("called broken, but the origin was not", case)
        elif ask["ended"] <= self._first_seen.get(case.pool, ask["ended"]) + SLACK:
            # an origin that never worked yet fails at once
            self.verdict.figures["no connection"]["before the first ever"] += 1
        else:
            self._says(f"failed for want of a connection ({token})", case)

    def _judge_terminated(self, case: _Case, last: Line | None) -> None:
        retried = case.ask["retried"]
        if retried and not case.idempotent:
            self._says("a POST was retried", case)
        if last is None or (retried and len(case.tries) < 2 and last["nth"] != 1):
            self._unread.append(case)
            return
        if last["end"] == "answered" and last["conn"] not in self._reset:
            self._says("failed although it was answered", case)
        died_used = last["nth"] > 1 and not last["sent"] and not last["interim"]
        if case.repeatable and died_used:
            self.verdict.lost += 1
            self._says("lost, and one replay could have served it", case)

    # ── those who left no trace ──────────────────────────────────────────────────────────────

    def _excuse_unread(self) -> None:
        """Match each failure with one connection that can have been the cause of it."""
        by_port: dict[int, list[_Case]] = defaultdict(list)
        for case in self._unread:
            by_port[case.ask["port"]].append(case)
        for port, cases in by_port.items():
            in_restart = [c for c in cases if self._met_restart(c)]
            self.verdict.figures["unread"]["in a restart"] += len(in_restart)
            left = [c for c in cases if c not in in_restart]
            ends = [end for end in self._ends if end["port"] == port]
            fresh = [end["at"] for end in ends if not end["served"]]
            repeatable = [c for c in left if c.repeatable]
            for case in self._match(repeatable, fresh, "repeatable, fresh connection"):
                self.verdict.lost += 1
                self._says("lost unread, and one replay could have served it", case)
            fresh += [end["at"] for end in ends if end["served"]]
            others = [c for c in left if not c.repeatable]
            for case in self._match(others, fresh, "not repeatable, any connection"):
                self._says("failed, and no connection ended", case)

    def _match(self, cases: list[_Case], moments: list[float], how: str) -> list[_Case]:
        """Give each moment to the case that is open and ends first, and take it off the list; the
        cases that got none."""
        waiting = sorted(cases, key=lambda c: c.ask["asked"])
        pending: list[_Case] = []
        matched: set[int] = set()
        for at in sorted(moments):
            while waiting and waiting[0].ask["asked"] - SLACK <= at:
                pending.append(waiting.pop(0))
            pending = [c for c in pending if c.ask["ended"] + SLACK >= at]
            if pending:
                first = min(pending, key=lambda c: c.ask["ended"])
                pending.remove(first)
                moments.remove(at)
                matched.add(first.number)
        self.verdict.figures["unread"][how] += len(matched)
        return [c for c in cases if c.number not in matched]

    def _met_restart(self, case: _Case) -> bool:
        ask = case.ask
        return any(
            r["port"] == ask["port"]
            and ask["asked"] - SLACK <= r["to"]
            and r["from"] <= ask["ended"] + SLACK
            for r in self._restarts
        )

    # ── figures ──────────────────────────────────────────────────────────────────────────────

    def _says(self, what: str, case: _Case) -> None:
        self.verdict.violations.append(f"{what}: {case}")

    def _count(self) -> None:
        figures = self.verdict.figures
        for case in self._cases.values():
            ask = case.ask
            figures["method"][ask["method"]] += 1
            figures["kind"][ask["kind"]] += 1
            outcome = ask["outcome"]
            if outcome == "own":
                outcome = f"own {ask['status']} {ask['token']}"
            figures["outcome"][outcome] += 1
            if ask["retried"]:
                figures["replay"]["served" if ask["outcome"] == "whole" else "met a fault"] += 1
            if case.idempotent and case.forwarded and ask["token"] == "connection_terminated":
                figures["idempotent 502"]["after a replay" if ask["retried"] else "no replay"] += 1
        for tries in self._tries.values():
            for line in tries:
                figures["trick"][line["trick"] or "late"] += 1
                figures["try"]["used" if line["nth"] > 1 else "fresh"] += 1
        for end in self._ends:
            why, _, how = end["how"].partition(":")
            figures["origin ended"][f"idle {how}" if why == "idle" else why] += 1
        figures["origin ended"]["restarts"] = len(self._restarts)
