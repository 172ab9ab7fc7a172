"""One of the processes that serve: the daemon with a share of the settings, on sockets that the
parent bound."""

import asyncio
import signal
import socket
import sys
from typing import Any

import uvloop

from warmproxy import log
from warmproxy.admin.wish import Wish
from warmproxy.errors import StartError, WarmproxyError
from warmproxy.processes.link import (
    Answer,
    Ask,
    Begin,
    Failed,
    Farewell,
    Leave,
    Link,
    Message,
    Opened,
    Refusal,
    Reload,
    Stop,
    WantsToGo,
)
from warmproxy.service import Service
from warmproxy.settings import Settings
from warmproxy.systemd import Notifier
from warmproxy.wiring import Inherited


def serve(sockets: list[socket.socket]) -> int:
    """A process's life, on the socket to the parent and then the ones to listen on; the exit
    status. It ends when the parent says so, or is gone."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's go to all: they are the parent's
        signal.signal(number, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Serving(*sockets).serve())


class Serving:
    def __init__(self, to_parent: socket.socket, *listeners: socket.socket) -> None:
        self._to_parent = to_parent
        self._listeners = listeners
        self._begun: asyncio.Future[Begin | None]
        self._gone = asyncio.Event()
        self._settings: Settings
        self._service: Service | None = None

    async def serve(self) -> int:
        """Wait for the settings, and serve; the exit status."""
        loop = asyncio.get_running_loop()
        self._begun = loop.create_future()
        self._link = await Link.over(self._to_parent, self._heard, self._parent_gone)
        loop.add_signal_handler(signal.SIGTERM, self._link.send, WantsToGo())
        begin = await self._begun
        if begin is None:
            return 0
        service = self._make(begin)
        telling = loop.create_task(self._tell_when_open(service), name="tell when open")
        try:
            await service.serve()
        except StartError as error:
            self._link.send(Failed(str(error)))
            return 1
        finally:
            telling.cancel()
            if service.opened.is_set():
                self._link.send(Farewell(service.sample()))
            self._link.close()
            await self._gone.wait()
        return 0

    def _make(self, begin: Begin) -> Service:
        log.setup(begin.settings.log_format, sys.stderr, begin.number)
        self._settings = begin.settings
        sockets = dict(zip(begin.addresses, self._listeners, strict=True))
        self._service = Service(
            begin.settings, self._read, Notifier({}), Inherited(sockets), begin.pseudonym
        )
        return self._service

    def _read(self) -> Settings:
        return self._settings

    async def _tell_when_open(self, service: Service) -> None:
        await service.opened.wait()
        self._link.send(Opened())

    def _parent_gone(self) -> None:
        self._gone.set()
        if not self._begun.done():
            self._begun.set_result(None)
        if self._service is not None:
            self._service.stop()

    def _heard(self, message: Message) -> None:
        if isinstance(message, Begin):
            self._begun.set_result(message)
            return
        service = self._service
        assert service is not None, "the parent waits until it has opened"
        match message:
            case Reload():
                self._settings = message.settings
                service.reload()
            case Leave():
                service.leave(message.pid)
            case Stop():
                service.stop()
            case Ask():
                self._link.send(self._answer(service, message))

    def _answer(self, service: Service, ask: Ask) -> Answer | Refusal:
        try:
            return Answer(ask.ask, {name: _tell(service, name, ask.argument) for name in ask.names})
        except WarmproxyError as error:
            return Refusal(ask.ask, error.reason, error.status, error.token)


def _tell(service: Service, name: str, argument: Any) -> Any:
    """`sample`, `pools`, `about` and `ready` as the pages have them; `grant` fulfils the Wish that
    it gets the parts of, and raises WarmproxyError."""
    match name:
        case "sample":
            return service.sample()
        case "pools":
            return list(service.view.pools())
        case "about":
            return service.view.about()
        case "ready":
            return service.view.ready()
        case "grant":
            return service.view.grant(Wish.of_parts(argument))
    raise AssertionError(name)
