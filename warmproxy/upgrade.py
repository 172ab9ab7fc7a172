"""SIGUSR2: the same command once more, with --takeover: an upgrade in place, where whoever
supervises the daemon has to see it begun by the process that it knows."""

import os
import subprocess
import sys

from warmproxy import log


class Upgrade:
    """Starts the next process, and tells if nothing became of it."""

    def __init__(self) -> None:
        self._next: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Unless one is under way. It is the interpreter and the code that are there now."""
        if self._next is not None and self._next.poll() is None:
            return
        if os.getpid() == 1:
            reason = "the first process of a container ends the container when it leaves"
            log.event("upgrade_failed", level="error", reason=reason)
            return
        again = [word for word in sys.orig_argv if word != "--takeover"]
        try:
            self._next = subprocess.Popen([*again, "--takeover"], stdin=subprocess.DEVNULL)
        except OSError as error:
            log.event("upgrade_failed", level="error", reason=f"{again[0]}: {error.strerror}")
        else:
            log.event("upgrading", pid=self._next.pid)

    def look(self) -> None:
        """Called about once a second."""
        if self._next is not None and (status := self._next.poll()) is not None:
            reason = f"process {self._next.pid} ended with status {status}"
            log.event("upgrade_failed", level="error", reason=reason)
            self._next = None
