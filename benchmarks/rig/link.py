"""Two network namespaces joined by a link on which every packet takes its time.

`join` moves the calling process into the near namespace and returns the far one's first process.
Nothing is named: the namespaces live as long as the processes in them, so nothing is left behind,
not even after a SIGKILL. The delay is made by a process that carries packets between two TUN
devices (the kernel's netem is missing from many kernels and containers).
"""

import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

NEAR, FAR = "10.77.0.1", "10.77.0.2"

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
DEVICE = "link0"

GRAIN = 0.0001
"""Seconds between two looks of the carrier: what comes at once is carried at once. To wake up for
every packet would take the others' core away."""

libc = ctypes.CDLL(None, use_errno=True)


# Who goes first where several share a core: a packet that is due is carried at once, and an answer
# that is there is read, whatever the origin still has to compute for others.
PROGRAM = 1  # a client that is not the rig's own: what it computes holds up nobody else
ORIGIN = PROXY = 2
CLIENT = 3
CARRIER = 4


def go_first(priority: int) -> None:
    """Give this process precedence over other work on the machine."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        pass  # not allowed in some containers; the figures say how much was disturbed


def reap(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with its children, and wait for its end without precedence: the kernel waits
    busily for children that are ending, and whoever goes first would keep them from it."""
    os.killpg(process.pid, signal.SIGKILL)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    process.wait()
    if policy != os.SCHED_OTHER:
        os.sched_setscheduler(0, policy, parameters)


def spawn(
    command: Sequence[str], cpu: int, priority: int, **options: object
) -> subprocess.Popen[bytes]:
    """Start a program on one core; it dies with us, whatever kills us."""

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {cpu})
        go_first(priority)

    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(command, process_group=0, preexec_fn=in_child, **options)


def join(rtt: float, far_command: Sequence[str], cpu: int) -> list[subprocess.Popen[bytes]]:
    """Build the link, start `far_command` behind it, and stay in the near namespace."""
    far_end = _enter_new_namespace(FAR)
    far = spawn(far_command, cpu, ORIGIN)
    near_end = _enter_new_namespace(NEAR)
    ends = (near_end, far_end)
    carrier_command = [sys.executable, str(Path(__file__)), *map(str, ends), str(rtt / 2)]
    carrier = spawn(carrier_command, cpu, CARRIER, pass_fds=ends)
    for end in ends:
        os.close(end)
    return [far, carrier]


def _enter_new_namespace(address: str) -> int:
    """Unshare the network, put a TUN device with this address into it, return its descriptor."""
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for arguments in (
        ["link", "set", "lo", "up"],
        ["addr", "add", f"{address}/24", "dev", DEVICE],
        ["link", "set", DEVICE, "up"],
    ):
        subprocess.run(["ip", *arguments], check=True)
    return end


def carry(near_end: int, far_end: int, one_way: float) -> None:
    """Carry packets both ways, each `one_way` seconds late. The delay is constant: FIFO order."""
    under_way: dict[int, deque[tuple[float, bytes]]] = {near_end: deque(), far_end: deque()}
    other = {near_end: far_end, far_end: near_end}
    while True:
        due = [queue[0][0] for queue in under_way.values() if queue]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for end in select.select([near_end, far_end], [], [], timeout)[0]:
            try:
                while True:
                    packet = os.read(end, 65536)
                    under_way[other[end]].append((time.monotonic() + one_way, packet))
            except BlockingIOError:
                pass
        now = time.monotonic()
        for end, queue in under_way.items():
            while queue and queue[0][0] <= now:
                os.write(end, queue.popleft()[1])
        time.sleep(GRAIN)


if __name__ == "__main__":
    carry(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
