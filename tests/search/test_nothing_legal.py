"""What a target cannot run in the format asked is refused with node, operator, and the nearest that it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits import TargetError
from fewbits.search.preparing import Request, prepare, wanted_scheme
from fewbits.targets import resolve_target


def _refusal(path: Path, shape: tuple[int, ...], scheme: str) -> TargetError:
    data = {"x": np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)}
    with pytest.raises(TargetError) as caught:
        prepare(Request(model=str(path), data=data, scheme=scheme, metric="agreement"))
    assert caught.value.exit_code == 5
    return caught.value


def test_no_integer_operator_names_the_first_node_and_what_can_be_stored(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 8, 6, 6))
    for layer in range(2):
        x = n.op("ConvTranspose", x, n.weight(8, 8, 3, 3), n.vector(8), name=f"up{layer}", pads=[1, 1, 1, 1])
    n.output(n.op("Flatten", n.op("Softmax", x)))
    error = _refusal(n.save(tmp_path), (8, 6, 6), "w8a8")
    assert error.slug == "nothing-to-quantize"
    text = str(error)
    assert "2 ConvTranspose ('up0', …)" in text
    assert "the nearest that it can hold is --scheme w8a16, for 2 weights" in text


def test_without_any_weight_no_scheme_is_named(net: Any, tmp_path: Path) -> None:
    n = net()
    n.output(n.op("Softmax", n.op("Exp", n.input(("N", 8)), name="grow")))
    error = _refusal(n.save(tmp_path), (8,), "w8a8")
    assert "1 Exp ('grow')" in str(error)
    assert "nearest" not in str(error)


@pytest.mark.parametrize(("scheme", "nearest"), [("w4a8", "'w8a8'"), ("w4a16-g48", "'w4a16-g64'")])
def test_a_scheme_that_the_target_does_not_write_names_those_that_it_does(
    scheme: str, nearest: str, net: Any, tmp_path: Path
) -> None:
    n = net()
    n.output(n.gemm(n.input(("N", 64)), 64, 8))
    error = _refusal(n.save(tmp_path), (64,), scheme)
    assert error.slug == "scheme-not-written"
    assert f"the nearest is {nearest}" in str(error)
    assert "it writes w8a8" in str(error)


@pytest.mark.parametrize(
    ("target", "scheme", "nearest"),
    [
        ("ort-cpu", "mxfp4", "'w4a16-g32'"),
        ("ort-cpu", "mxfp8", "'w8a16-g32'"),
        ("openvino", "mxfp4", "'w8a8'"),
        ("emulated", "mxfp4", "'w4a16-g32'"),
    ],
)
def test_a_scheme_like_none_that_the_target_writes_has_a_nearest_by_its_bits(
    target: str, scheme: str, nearest: str
) -> None:
    with pytest.raises(TargetError) as caught:
        wanted_scheme(Request(model="m.onnx", data=None, scheme=scheme), resolve_target(target))
    assert caught.value.slug == "scheme-not-written"
    assert f"the nearest is {nearest}; it writes w" in str(caught.value)
