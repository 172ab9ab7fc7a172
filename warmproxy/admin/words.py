"""Numbers as people read them, for the status page and for the terminal."""


def span(seconds: float | None) -> str:
    """A duration in three digits or so; "-" where there is none."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def about(seconds: float) -> str:
    """A duration in its largest unit: what was some time ago."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def millis(seconds: float) -> str:
    """A short duration, such as a dial takes."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def share(part: int, rest: int) -> str:
    """`part` of both in per cent, "-" where both are 0; 100 % and 0 % only where it is so."""
    if not part + rest:
        return "-"
    percent = 100 * part / (part + rest)
    if part and rest:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f} %" if 0 < percent < 100 else f"{percent:.0f} %"


def safe(text: object) -> str:
    """Text that came over the network, without what would move a cursor or turn a line round."""
    return "".join(c if c.isprintable() else "?" for c in str(text))
