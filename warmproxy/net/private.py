"""Files that are one user's alone, each of them whole at every moment.

What the system says is raised as the OSError that it is.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warmproxy.errors import StartError

LARGEST = 2**20
"""Bytes of a file that are read at all."""


def read(path: Path) -> bytes:
    """What only its owner, who is us or root, can have read and put there. Raises StartError where
    others can, OSError."""
    check_folder(path.parent)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # no pipe shall stop us
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        _check_owner(path, found)
        if found.st_mode & 0o077:
            raise StartError(
                f"others can read or write {path}: chmod 600 {path}, and if somebody may have read "
                "it, warmproxy ca rotate --retire"
            )
        return file.read(LARGEST)


def check_folder(folder: Path) -> None:
    """Raises StartError where others can put files into it, OSError."""
    found = os.stat(folder)
    _check_owner(folder, found)
    if found.st_mode & 0o022:
        raise StartError(f"others can write to {folder}: chmod 700 {folder}")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise StartError(
            f"{path} belongs to another user: chown it to the one that warmproxy runs as"
        )


def write(path: Path, data: bytes, mode: int) -> None:
    """In place of what is there, whole or not at all, and with this mode from the first moment on.
    Raises OSError."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        rename(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def rename(old: Path, new: Path) -> None:
    """`os.replace` that outlives a crash of the machine. Raises OSError."""
    os.replace(old, new)
    fd = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time. Raises OSError where the folder is not there."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
