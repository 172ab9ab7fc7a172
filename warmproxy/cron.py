"""Times as a crontab writes them, and the zones they are in. The only importer of cronsim.

What an expression means is what it means to Debian's cron, also where clocks are set: a time of
day that is skipped in spring comes right after the gap, one that comes twice in autumn counts
once, the first time. Where minute or hour begins with `*`, and with six fields, the time that
passes counts.
"""

from datetime import UTC, datetime, timedelta, tzinfo

_FIELDS = "minute hour day month weekday"
_EXAMPLE = '"55 8 * * mon-fri"'


class Cron:
    """The moments that an expression of five fields stands for, or of six: seconds come first.

    Times are in `zone`; moments that are given and returned are aware, in whatever zone and in
    UTC. Raises ValueError, with what is to be said of the text.
    """

    def __init__(self, text: str, zone: tzinfo = UTC) -> None:
        from cronsim import CronSimError  # here: 2 ms, for those that have windows

        self._text = text
        self._zone = zone
        try:
            self.after(datetime(2024, 1, 1, tzinfo=UTC))
        except (CronSimError, ValueError) as error:
            why = str(error).partition(":")[0].lower()
            raise ValueError(
                f"is no time of a crontab ({why}): write {_FIELDS}, for example {_EXAMPLE}"
            ) from None
        except StopIteration:
            raise ValueError("is a time that never comes") from None

    def after(self, moment: datetime) -> datetime:
        """The first start later than `moment`."""
        from cronsim import CronSim

        starts = CronSim(self._text, moment.astimezone(self._zone))
        # in the hour that comes twice the library's first one may be past already
        return next(start for s in starts if (start := s.astimezone(UTC)) > moment)

    def by(self, moment: datetime) -> datetime:
        """The last start at or before `moment`; in the hour that comes twice it may be an earlier
        one."""
        from cronsim import CronSim

        local = moment.astimezone(self._zone)
        # with a fraction of a second, the library begins with the very second
        starts = CronSim(self._text, local.replace(microsecond=1), reverse=True)
        return next(starts).astimezone(UTC)


def zone(name: str) -> tzinfo:
    """The time zone of that name, as in Europe/Berlin; "" means the machine's own.

    Raises ValueError, with what is to be said of the name.
    """
    if not name:
        return _MACHINE
    import difflib  # here: 3 ms, for those that name a zone
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
    if not known:
        raise ValueError("cannot be looked up: this machine has no time zones (tzdata)")
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name[:80].lower().replace(" ", "_"), by_lower, n=1)
    meant = f"did you mean {by_lower[close[0]]}?" if close else "for example Europe/Berlin"
    raise ValueError(f"is no time zone; {meant}")


class _Machine(tzinfo):
    """The machine's own zone with all its rules, as the C library has them. It has no name that
    zoneinfo could be asked for: TZ may hold rules, /etc/localtime may be a copy."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> str:
        return "the machine's own"

    def fromutc(self, moment: datetime) -> datetime:
        # of the hour that comes twice, this says which one it is (fold)
        local = datetime.fromtimestamp(moment.replace(tzinfo=UTC).timestamp())
        return local.replace(tzinfo=self)


_MACHINE = _Machine()
