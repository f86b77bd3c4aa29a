"""How much memory a run may still take: what the machine has free, and what limits of the process leave."""

from __future__ import annotations

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


def _address_space() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _field(Path("/proc/self/status"), "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


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
