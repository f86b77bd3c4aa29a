"""The system calls behind files.py: write and sync, lock, exchange two names.

Everything here raises OSError; files.py words the refusals.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

_UMASK_LOCK: Final = threading.Lock()
# EPERM: sandboxes that filter system calls answer so; a true EPERM comes again from the plain renames.
_NO_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def umask() -> int:
    """Returns the process's umask."""
    with _UMASK_LOCK:  # the umask can only be read by setting it; meanwhile files get a stricter mode, never a laxer
        value = os.umask(0o077)
        os.umask(value)
    return value


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Makes the file at path, which must not exist, writes data and syncs it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Syncs the names in a folder, so that a rename survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot sync a directory say EINVAL
            raise
    finally:
        os.close(descriptor)


def short(name: str) -> str:
    """Returns name, or its hash where hidden names made from it would exceed the 255 bytes of a file name."""
    return name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def take_lock(path: Path) -> int:
    """Returns the descriptor of the locked file at path, which is made if need be.

    Raises: BlockingIOError if somebody else holds it.
    """
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock: then this lock is of no use.
            with suppress(FileNotFoundError):
                here, there = os.fstat(descriptor), path.stat(follow_symlinks=False)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def swap(new: Path, target: Path, old: Path) -> None:
    """Puts new at target in one step and syncs that; if the sync fails, puts things back."""
    if not os.path.lexists(target) or not os.listdir(target):  # noqa: PTH208
        os.rename(new, target)  # noqa: PTH104 - replaces an empty folder, refuses a filled one
        undo = [(target, new)]
    else:
        try:
            exchange(new, target)
            undo = []
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            os.rename(target, old)  # noqa: PTH104
            undo = [(target, new), (old, target)]
            try:
                os.rename(new, target)  # noqa: PTH104
            except BaseException:
                os.rename(old, target)  # noqa: PTH104
                raise
    try:
        sync_folder(target.parent)
    except BaseException:
        if not undo:
            exchange(new, target)
        for source, destination in undo:
            os.rename(source, destination)  # noqa: PTH104
        raise


def exchange(left: Path, right: Path) -> None:
    """Exchanges two names in one step (Linux renameat2 with RENAME_EXCHANGE, renameat2(2)).

    Raises: OSError(ENOSYS) where there is no such call, OSError(EINVAL) where the file system lacks it.
    """
    import ctypes

    at_fdcwd, rename_exchange = -100, 2
    library = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = library.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(at_fdcwd, os.fsencode(left), at_fdcwd, os.fsencode(right), rename_exchange) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(right))
