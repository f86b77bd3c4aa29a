"""Values on which quantizers disagree: ties, ends, denormals, and numbers whose quotients leave float32."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def _share(name: str) -> None:
    """Makes a file beside this one importable as fewbits_test_NAME: tests here are no package."""
    spec = importlib.util.spec_from_file_location(f"fewbits_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


_share("laws")

EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1e-44, -1e-44, 1e-40, 1.1754944e-38, 3e38, -3e38, 3.4028235e38, -3.4028235e38]


def _hard_values(scale: float) -> np.ndarray:
    halves = np.arange(-600, 601, dtype=np.float64) / 2 * scale
    with np.errstate(over="ignore"):
        centre = halves.astype(np.float32)
        near = [centre, np.nextafter(centre, np.float32(np.inf)), np.nextafter(centre, np.float32(-np.inf))]
    values = np.concatenate([*near, np.array(EXTREMES, dtype=np.float32)])
    return values[np.isfinite(values)]


@pytest.fixture(scope="session")
def hard_values() -> Callable[[float], np.ndarray]:
    """The neighbourhood of every tie and every code of 8 bits under a scale, and the extremes, float32."""
    return _hard_values


@pytest.fixture(scope="session")
def float16_values() -> np.ndarray:
    """Every finite float16, as float32."""
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
    return every[np.isfinite(every)]
