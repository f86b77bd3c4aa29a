"""The mixed bag: models in the structure of public families, written by script, with data to quantize them by.

Not a test module: ``tests/bag/test_bag.py`` and ``benchmarks/bench_bag.py`` load it by path. The weights are random but
live, and most heads are fitted to the data, so that answers are as sure as those of a trained network.
"""

from __future__ import annotations

from .cases import CASES, Case
from .writing import Made, Saved, run_float, save

__all__ = ["CASES", "Case", "Made", "Saved", "run_float", "save"]
