"""One bit of an answer, and an answer that is gone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fewbits._base.errors import VerificationError
from fewbits.measurement.golden import make_golden, replay_golden
from fewbits.runtimes.base import Options


def _changed(golden: bytes, change: Callable[[dict[str, np.ndarray]], None]) -> bytes:
    with np.load(io.BytesIO(golden)) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_one_bit_is_a_difference_where_the_answers_were_made(runs: ModuleType, tmp_path: Path) -> None:
    net = runs.small_net(tmp_path / "n.onnx")
    golden = make_golden(net, runs.small_data(1), Options(), seed=7)

    def flip(arrays: dict[str, np.ndarray]) -> None:
        arrays["output_0"].view(np.uint32).reshape(-1)[3] ^= 1

    with pytest.raises(VerificationError, match="golden-differs"):
        replay_golden(net, _changed(golden, flip))


def test_elsewhere_rounding_may_differ_but_shapes_and_names_may_not(runs: ModuleType, tmp_path: Path) -> None:
    net = runs.small_net(tmp_path / "n.onnx")
    golden = make_golden(net, runs.small_data(1), Options(), seed=7)

    def elsewhere(arrays: dict[str, np.ndarray]) -> None:
        arrays["recipe"] = np.array(str(arrays["recipe"]).replace('"isa": [', '"isa": ["other", '))

    def flip(arrays: dict[str, np.ndarray]) -> None:
        elsewhere(arrays)
        arrays["output_0"].view(np.uint32).reshape(-1)[3] ^= 1

    def reshaped(arrays: dict[str, np.ndarray]) -> None:
        elsewhere(arrays)
        arrays["output_0"] = arrays["output_0"][:, :5]

    def renamed(arrays: dict[str, np.ndarray]) -> None:
        elsewhere(arrays)
        arrays["recipe"] = np.array(str(arrays["recipe"]).replace('"outputs": ["y"]', '"outputs": ["z"]'))

    seen = replay_golden(net, _changed(golden, flip))
    # One last bit of ten answers: 24 bits of precision are 140 dB.
    assert not seen.equal and not seen.same_place and seen.sqnr_db > 120
    for change in (reshaped, renamed):
        with pytest.raises(VerificationError, match="golden-differs"):
            replay_golden(net, _changed(golden, change))
