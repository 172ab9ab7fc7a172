"""The charts of the status page, as inline SVG."""

from collections.abc import Sequence
from html import escape

from warmproxy.admin.history import Lately
from warmproxy.admin.words import about, safe


def text_of(text: object) -> str:
    """Anything, harmless in an element or in a quoted attribute."""
    return escape(safe(text))


def charts(lately: Lately) -> str:
    """The three charts of all origins together."""
    if len(lately.per_second) < 2:
        return '<p class="soon">Charts of the last hour begin 20 seconds after the start.</p>\n'
    length = f"the last {about(lately.seconds)}"
    rates, ratios = lately.per_second, lately.hit_ratio
    most = max(rates)
    known = [ratio for ratio in ratios if ratio is not None]
    ceiling = max(1, *lately.warm, *lately.target)
    now = f"{rates[-1]:.3g}"
    ratio_text = f"{100 * known[-1]:.4g} %, lowest {100 * min(known):.4g} %" if known else "-"
    charts = [
        (
            "Requests per second",
            f"{now}, at most {most:.3g}",
            line([rate / most if most else 0.0 for rate in rates], "area"),
        ),
        ("Hit ratio", ratio_text, line(ratios, "line")),
        (
            "Warm connections",
            f"{lately.warm[-1]} of {lately.target[-1]}",
            line([value / ceiling for value in lately.target], "goal")
            + line([value / ceiling for value in lately.warm], "line"),
        ),
    ]
    return (
        '<div class="charts">\n'
        + "".join(
            f"<figure><figcaption>{name} <b>{text}</b></figcaption>"
            f"{svg(drawn, len(rates), f'{name} in {length}: now {text}')}</figure>\n"
            for name, text, drawn in charts
        )
        + f'<p class="axis">{length}, oldest on the left</p>\n</div>\n'
    )


def svg(drawn: str, points: int, label: str) -> str:
    """A picture of what `line` drew over so many points; `label` says the same in words."""
    return (
        f'<svg role="img" aria-label="{text_of(label)}" viewBox="0 -1 {points - 1} 22"'
        f' preserveAspectRatio="none">{drawn}</svg>'
    )


def line(values: Sequence[float | None], kind: str) -> str:
    """Values from 0 to 1 as lines 20 high, with a gap where nothing is known."""
    runs: list[list[str]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            if runs[-1]:
                runs.append([])
        else:
            runs[-1].append(f"{i},{20 - 20 * value:.4g}")
    drawn = []
    for run in filter(None, runs):
        if len(run) == 1:  # a line needs two ends to be seen
            x, _, y = run[0].partition(",")
            run.append(f"{x}.5,{y}")
        if kind == "area":
            left, right = run[0].partition(",")[0], run[-1].partition(",")[0]
            drawn.append(f'<polygon points="{left},20 {" ".join(run)} {right},20"/>')
            kind_of_line = "line"
        else:
            kind_of_line = kind
        drawn.append(f'<polyline class="{kind_of_line}" points="{" ".join(run)}"/>')
    return "".join(drawn)
