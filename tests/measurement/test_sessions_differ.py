"""Other sessions of one file beside the one that ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits.measurement.benchmark import ModelFiles
from fewbits.measurement.quality import Quality
from fewbits.measurement.sessions_differ import SessionDifference, compare_sessions, examples_compared
from fewbits.runtimes._variants import open_variant, variants_of
from fewbits.runtimes.base import Options
from fewbits.search.sessions import changes_answers, told_of_sessions

VARIANTS = variants_of(Options())
CLOSE = Quality(kl=1e-6, sqnr_db=60.0, agreement=1.0)
FOUND = SessionDifference(variant=VARIANTS[0], examples=64, equal=False, worst=0.5, reach=8.0, step=0.1, quality=CLOSE)


def made(net: Any, bench: Any, graphs: Any, tmp_path: Path) -> tuple[Path, Any, Any]:
    n = net()
    x = n.relu(n.conv(n.input((None, 8, 8, 8)), 8, 16))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", n.relu(n.conv(x, 16, 16)))), 16, 10))
    model = bench.open(n)
    examples = graphs.live_examples(model, 12)
    path = tmp_path / "int8.onnx"
    path.write_bytes(bench.quantize(model, examples).data)
    return path, model, examples


def test_each_way_to_open_a_file_is_compared_on_the_same_examples(
    net: Any, bench: Any, graphs: Any, tmp_path: Path
) -> None:
    path, model, examples = made(net, bench, graphs, tmp_path)
    found = compare_sessions(path, model, examples, np.arange(12), output=model.view.outputs[0], options=Options())
    assert [one.variant for one in found] == list(VARIANTS)
    assert {one.examples for one in found} == {12}
    by_name = {one.variant.name: one for one in found}
    # Threads share out rows and never the sum of an integer product.
    assert by_name["default"].equal and by_name["default"].worst == 0
    for one in found:
        assert one.equal == (one.worst == 0)
        assert one.quality.sqnr_db > 30


def test_the_same_session_twice_does_not_differ(net: Any, bench: Any, graphs: Any, tmp_path: Path) -> None:
    path, model, examples = made(net, bench, graphs, tmp_path)
    output = model.view.outputs[0]
    (one,) = compare_sessions(
        path, model, examples, np.arange(5), output=output, options=Options(),
        variants=[replace(VARIANTS[0], name="same", optimize=True)],
    )  # fmt: skip
    assert one.equal and not changes_answers(one)
    assert one.quality.sqnr_db == float("inf")


def test_what_the_runtime_refuses_is_kept_as_such(net: Any, bench: Any, graphs: Any, tmp_path: Path) -> None:
    path, model, examples = made(net, bench, graphs, tmp_path)
    odd = replace(VARIANTS[0], entries={"session.intra_op_thread_affinities": "nonsense"}, optimize=True)
    (one,) = compare_sessions(
        path, model, examples, np.arange(5), output=model.view.outputs[0], options=Options(threads=4), variants=[odd]
    )
    assert one.refused
    assert not changes_answers(one)


@pytest.mark.parametrize(
    ("quality", "told"),
    [
        (CLOSE, False),
        (replace(CLOSE, agreement=61 / 64), True),
        (replace(CLOSE, sqnr_db=29.0), True),
        (Quality(kl=None, sqnr_db=45.0, agreement=None), False),
    ],
)
def test_what_changes_an_answer_or_lies_far_off_is_told(quality: Quality, told: bool) -> None:
    assert changes_answers(replace(FOUND, quality=quality)) is told


def test_the_line_names_session_answers_and_codes(net: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewbits.search import sessions

    far = replace(FOUND, quality=replace(CLOSE, agreement=61 / 64))
    monkeypatch.setattr(sessions, "compare_sessions", lambda *anything, **options: (FOUND, far))
    lines = told_of_sessions(ModelFiles(model=Path("m.onnx")), None, None, np.arange(64), output="y", options=Options())
    assert lines == (
        "a session without graph optimizations answers otherwise than the one that ships: 3 of 64 answers change, 'y' "
        "by up to 0.5 of 8 (5 codes); the figures are those of the one that ships [sessions-differ]",
    )


def test_no_examples_and_unknown_runtimes_are_not_compared(net: Any, bench: Any, graphs: Any, tmp_path: Path) -> None:
    path, model, examples = made(net, bench, graphs, tmp_path)
    assert not compare_sessions(path, model, examples, np.arange(0), output="y", options=Options())
    assert not compare_sessions(path, model, examples, np.arange(3), output="y", options=Options(runtime="third"))


@pytest.mark.parametrize(("ships", "other"), [("f32", "bf16"), ("bf16", "f32")])
def test_openvino_is_also_asked_in_the_other_precision(
    ships: str, other: str, net: Any, bench: Any, graphs: Any, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'fewbits[openvino]'")
    path, model, examples = made(net, bench, graphs, tmp_path)
    options = Options(runtime="openvino", precision=ships)
    (one,) = compare_sessions(path, model, examples, np.arange(12), output=model.view.outputs[0], options=options)
    assert one.variant.precision == other
    assert not one.refused
    assert one.quality.sqnr_db > 20  # bfloat16 keeps 8 bits: about 50 dB a rounding


def test_a_model_that_computes_much_is_asked_fewer_examples(net: Any, bench: Any) -> None:
    small, large = net(), net()
    small.output(small.gemm(small.input((None, 16)), 16, 4))
    large.output(large.conv(large.input((1, 256, 64, 64)), 256, 256))
    counts = [examples_compared(bench.open(n)) for n in (small, large)]
    assert counts == [64, 8]  # 4096 * 256 * 9 * 256 = 2.4e9 products an example; 2e10 allow 8


def test_a_session_with_an_entry_is_another_session(net: Any, bench: Any, graphs: Any, tmp_path: Path) -> None:
    path, model, examples = made(net, bench, graphs, tmp_path)
    session = open_variant(path, Options(), VARIANTS[0])
    assert set(session.run(examples.arrays)) == set(model.view.outputs)
