"""How much memory a run may still take: what the machine has free, and what limits of the process leave."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

_KIB = 1024


def available_bytes() -> int | None:
    """Returns the bytes that this process may still take; None where the system does not tell.

    The least of: memory that the kernel calls available, what the process's address space limit leaves, and what its
    control group leaves (Linux; version 2, then 1).
    """
    found = [value for value in (_meminfo(), _address_space(), _control_group()) if value is not None]
    return min(found) if found else None


def _meminfo() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable")


def address_space() -> int | None:
    """Returns the bytes to which the process's address space is limited (``ulimit -v``); None where it is not."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


# The loader of shared libraries; ``threading``; what C++ throws when new fails; protobuf, of a model below 2 GB; NumPy;
# ONNX Runtime's arena.
MEMORY_WORDS = (
    "failed to map segment", "cannot allocate memory", "can't start new thread", "bad_alloc",
    "failed to serialize proto", "allocate memory", "bfc_arena", "unable to allocate", "memoryerror", "out of memory",
)  # fmt: skip


def is_lack_of_memory(error: BaseException) -> bool:
    """Tells whether memory, or the right to a thread, was missing: each library says that in another way."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(word in str(error).lower() for word in MEMORY_WORDS):
        return True
    cause = error.__cause__ or error.__context__  # NumPy words a failed import anew
    return cause is not None and is_lack_of_memory(cause)


def _address_space() -> int | None:
    limit, used = address_space(), _field(Path("/proc/self/status"), "VmSize")
    return None if limit is None or used is None else max(0, limit - used)


def _control_group() -> int | None:
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such version, or "max"
            continue
    return None


def _field(path: Path, key: str) -> int | None:
    """Returns a field of the form ``Key:  123 kB`` in bytes."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{key}:")), None)
