"""What this CPU is, as far as quantized arithmetic cares. Read from the system; never from an environment variable."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

# Flags that change how fast, or how exactly, 8-bit and 16-bit products are computed.
_FLAGS = (
    "amx_int8", "amx_bf16", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "avx512f", "avx2",
    "i8mm", "asimddp", "bf16", "sve",
)  # fmt: skip


@cache
def cpu_flags() -> tuple[str, ...]:
    """Returns the instruction sets of this CPU that matter to quantized arithmetic; empty where they are hidden."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(flag for flag in _FLAGS if flag in present)
    return ()


@cache
def cpu_name() -> str:
    """Returns the CPU's model name, or the architecture where the system hides it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine() or "unknown"


def instruction_set() -> str:
    """Returns the family that targets distinguish: ``vnni``, ``avx2`` or ``arm``.

    ``vnni`` stands for x64 CPUs whose u8 x s8 products are exact (VNNI, AMX); ``avx2`` for those where pairs of
    products saturate at 16 bits.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm"
    flags = cpu_flags()
    return "vnni" if "avx512_vnni" in flags or "avx_vnni" in flags else "avx2"


def native_bf16() -> bool:
    """Returns whether this CPU multiplies bfloat16 by itself; where it must be emulated, it is slower than float."""
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & set(cpu_flags()))


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
