"""Clients beyond loopback, without leaving the machine: a network namespace whose loopback
interface has one more address. Who connects to that address comes from it."""

import fcntl
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.daemon import warmproxy_environ
from tests.e2e.harness import missing, need

ADDRESS = "10.11.12.13"


def up() -> None:
    """Bring loopback up, with ADDRESS on it; called inside."""
    with socket.socket() as control:
        flags = struct.pack("16sh", b"lo", 0x1 | 0x40)  # up, running
        fcntl.ioctl(control, 0x8914, flags)  # SIOCSIFFLAGS
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
        fcntl.ioctl(control, 0x8916, address)  # SIOCSIFADDR


def run_inside(script: str, folder: Path, *args: str) -> Any:
    """Run a Python script in a namespace of its own, in that folder; what it prints as JSON."""
    inside = [need("unshare"), "--user", "--map-root-user", "--net"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        missing("the right to make a network namespace")
    script = f"from tests.e2e import netns; netns.up()\n{script}"
    ran = subprocess.run(
        [*inside, sys.executable, "-c", script, *args],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        cwd=folder,
        env=warmproxy_environ(),
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
