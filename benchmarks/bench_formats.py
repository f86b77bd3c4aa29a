"""Quantizing a 4096 x 4096 float32 weight to each scheme: GB/s of input, beside plain NumPy, ml_dtypes and torch.

    python benchmarks/bench_formats.py [--rounds 7]

One thread, all ways of one scheme interleaved in one process, medians over rounds, ratios the median of the rounds'
own. "By hand" is what one would write: for integers amax, divide, round, clip in whole-array NumPy; for floats the same
scale and ml_dtypes' or torch's cast (which do not saturate; no clip is charged to them). "Memory" is the most that was
allocated beyond the input and the output, as a share of the input (tracemalloc sees NumPy's arrays).
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import time  # noqa: E402
import tracemalloc  # noqa: E402
from collections.abc import Callable  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

import fewbits  # noqa: E402
from common import SEED, machine, table  # noqa: E402
from fewbits.numerics.schemes import SCHEMES  # noqa: E402

SHAPE = (4096, 4096)
BEYOND = ("int8-channel", "int4-g128", "uint4-g32-asym", "int8")
Work = Callable[[], object]


def amax(blocks: np.ndarray) -> np.ndarray:
    """Returns the largest magnitude of the last axis without a copy of the array."""
    return np.maximum(blocks.max(axis=-1, keepdims=True), -blocks.min(axis=-1, keepdims=True))


def integers(values: np.ndarray, size: int, top: int) -> np.ndarray:
    """Returns codes by whole-array NumPy: min, max, divide, round, clip."""
    blocks = values.reshape(-1, size)
    scale = amax(blocks) / np.float32(top)
    return np.clip(np.round(blocks / scale), -top - 1, top).astype(np.int8)


def unsigned(values: np.ndarray, size: int, top: int) -> np.ndarray:
    """Returns asymmetric codes by whole-array NumPy."""
    blocks = values.reshape(-1, size)
    low, high = np.minimum(blocks.min(axis=1, keepdims=True), 0), np.maximum(blocks.max(axis=1, keepdims=True), 0)
    scale = (high - low) / np.float32(top)
    zero = np.round(-low / scale)
    return np.clip(np.round(blocks / scale) + zero, 0, top).astype(np.uint8)


def cast(values: np.ndarray, size: int, dtype: Any, top: float) -> np.ndarray:
    """Returns ml_dtypes' cast of the values under a scale a block; top 0: no scale."""
    if not top:
        return values.astype(dtype)
    blocks = values.reshape(-1, size)
    return (blocks / (amax(blocks) / np.float32(top))).astype(dtype)


def by_hand(values: np.ndarray) -> dict[str, Work]:
    """Returns what one would write in NumPy and ml_dtypes, by scheme."""
    row, everything = SHAPE[1], values.size
    return {
        "int8-channel": lambda: integers(values, row, 127),
        "int8": lambda: integers(values, everything, 127),
        "int4-g128": lambda: integers(values, 128, 7),
        "uint4-g32-asym": lambda: unsigned(values, 32, 15),
        "fp16": lambda: cast(values, row, np.float16, 0),
        "bf16": lambda: cast(values, row, ml_dtypes.bfloat16, 0),
        "fp8": lambda: cast(values, row, ml_dtypes.float8_e4m3fn, 448),
        "mxfp8": lambda: cast(values, 32, ml_dtypes.float8_e4m3fn, 448),
        "mxfp6": lambda: cast(values, 32, ml_dtypes.float6_e3m2fn, 28),
        "mxfp6_e2m3": lambda: cast(values, 32, ml_dtypes.float6_e2m3fn, 7.5),
        "mxfp4": lambda: cast(values, 32, ml_dtypes.float4_e2m1fn, 6),
        "nvfp4": lambda: cast(values, 16, ml_dtypes.float4_e2m1fn, 6),
    }


def in_torch(values: np.ndarray) -> dict[str, Work]:
    """Returns torch's own casts, by scheme; none without torch."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    tensor = torch.from_numpy(values)

    def scaled(dtype: Any, top: float) -> object:
        return (tensor / (tensor.abs().amax(dim=1, keepdim=True) / top)).to(dtype)

    def int8() -> object:
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127
        return (tensor / scale).round().clamp(-128, 127).to(torch.int8)

    return {
        "fp16": lambda: tensor.to(torch.float16),
        "bf16": lambda: tensor.to(torch.bfloat16),
        "fp8": lambda: scaled(torch.float8_e4m3fn, 448.0),
        "int8-channel": int8,
    }


def interleaved(ways: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Returns seconds of each way in each round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def extra_memory(values: np.ndarray, scheme: str) -> float:
    """Returns the peak of what was allocated beyond input and output, as a share of the input."""
    fewbits.quantize_array(values[:64], scheme)  # tables are built once
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = fewbits.quantize_array(values, scheme)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.codes.shape == values.shape
    return (peak - after) / values.nbytes if after > before else float("nan")


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Returns how many times faster ours is, round by round."""
    return f"{median(t / o for t, o in zip(theirs, ours, strict=True)):.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    values = np.random.default_rng(SEED).standard_normal(SHAPE, dtype=np.float32)
    hand, torch_ways = by_hand(values), in_torch(values)
    print(machine())
    copied = interleaved({"copy": values.copy}, rounds)["copy"]
    print(f"copy of the array: {values.nbytes / median(copied) / 1e9:.1f} GB/s; seed {SEED}, {rounds} rounds\n")
    names = [*BEYOND, *(n for n in SCHEMES if not n.endswith(("-even", "-ceil", "-rceil", "-dynamic", "a16", "a8")))]
    rows = []
    for name in names:
        ways: dict[str, Work] = {"fewbits": lambda name=name: fewbits.quantize_array(values, name)}  # type: ignore[misc]
        ways |= {key: found[name] for key, found in (("hand", hand), ("torch", torch_ways)) if name in found}
        slow = name.endswith("_k")
        seconds = interleaved(ways, 1 if slow else rounds)
        ours = seconds["fewbits"]
        rows.append(
            [
                name,
                f"{values.nbytes / median(ours) / 1e9:.2f}",
                ratio(seconds["hand"], ours) if "hand" in seconds else "",
                ratio(seconds["torch"], ours) if "torch" in seconds else "",
                f"{extra_memory(values, name):.2f}",
            ]
        )
    print(table(["Scheme", "GB/s", "Faster than by hand", "Faster than torch", "Memory"], rows))


if __name__ == "__main__":
    main()
