"""One process at a time writes a folder, where the system has locks (POSIX's flock)."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from plumbing.base.errors import InputError
from plumbing.base.folders import LOCK
from plumbing.base.processes import RANK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Within it no other run writes the folder, which is made if need be and which may get another
    name meanwhile; afterwards an empty one is gone again. The system lets go of a lock when its
    process dies, however it dies. Raises InputError that names the holder."""
    if RANK > 0:  # the first process holds it for all
        yield
        return
    make_folder(folder)
    path = os.path.join(folder, LOCK)
    if fcntl is None:
        print("this system has no file locks: do not start a second run with the same --out")
        try:
            yield
        finally:
            with suppress(OSError):  # not empty
                os.rmdir(folder)
        return
    handle = None
    while handle is None:
        handle = try_to_lock(folder, path)
    try:
        yield
    finally:
        if is_open_as(handle, path):
            os.unlink(path)
            with suppress(OSError):  # not empty
                os.rmdir(folder)
        os.close(handle)


@contextmanager
def in_turn(folder: str) -> Iterator[None]:
    """Within it nobody else is in_turn in this folder, under whatever name; who comes second waits.
    Nothing is left of it when the process dies."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_folder(folder: str) -> None:
    """Make a folder that may be there. Raises InputError where a file is."""
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} is no folder: move it, or choose another --out") from None


def try_to_lock(folder: str, path: str) -> int | None:
    """A handle on the locked file; None where another process moved the folder away meanwhile."""
    make_folder(folder)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        sentence = f"{folder} is being written by {holder}"
        raise InputError(f"{sentence}; wait for it, or choose another --out") from None
    except OSError as error:  # a file system without locks
        print(f"{path}: {error.strerror}; nobody else may write there now")
    if not is_open_as(handle, path):
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
    return handle


def is_open_as(handle: int, path: str) -> bool:
    """Whether the path still leads to the file behind the handle."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
