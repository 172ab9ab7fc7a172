"""SIGHUP: the settings are read again, and hold altogether or not at all."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from warmproxy import log
from warmproxy.errors import ConfigError, StartError
from warmproxy.systemd import Notifier
from warmproxy.wiring import Prepared


class Reloads:
    """One after the other; what is asked for while one is under way is done after it, once.

    `read` reads settings and what they name, in a thread: certificates take their time. `adopt`
    puts them to use, and says what changed and what would need a restart. Both raise ConfigError
    or StartError, and then nothing has changed.
    """

    def __init__(
        self,
        read: Callable[[], Prepared],
        adopt: Callable[[Prepared], Awaitable[tuple[list[str], list[str]]]],
        notifier: Notifier,
    ) -> None:
        self._read = read
        self._adopt = adopt
        self._notifier = notifier
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        self.is_good = True
        """Whether the last one succeeded."""
        self.good_at = time.time()
        """When settings were last read with success, in seconds since the epoch."""

    def ask(self) -> None:
        self._asked = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="reload")
            self._task.add_done_callback(self._done)

    async def _run(self) -> None:
        while self._asked:
            self._asked = False
            self._notifier.reloading()
            try:
                await self._once()
            finally:
                self._notifier.reloaded()

    async def _once(self) -> None:
        self.is_good, began = False, time.monotonic()
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(None, self._read)
            changed, fixed = await self._adopt(prepared)
        except ConfigError as error:
            self._failed(error.problems)
        except StartError as error:
            self._failed([str(error)])
        else:
            self.is_good, self.good_at = True, time.time()
            seconds = round(time.monotonic() - began, 3)
            log.event("reloaded", changed=changed, needs_restart=fixed or None, seconds=seconds)

    def _failed(self, problems: list[str]) -> None:
        advice = (
            "what held before goes on; mend it, try it with `warmproxy check`, and reload again"
        )
        log.event("reload_failed", level="error", problems=problems, advice=advice)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "reload", "exception": error})
