"""The advice follows the figures: other figures, other sentences."""

from __future__ import annotations

import pytest

from fewbits.measurement.advice import FORM_WORDS, LAYER_WORDS, advise
from fewbits.measurement.kernels import LAYERS, Form, KernelTime
from fewbits.measurement.latency import Speedup


def row(layer: str, form: Form, ratio: float, width: float = 0.0) -> KernelTime:
    speedup = Speedup(ratio=ratio, low=ratio * (1 - width), high=ratio * (1 + width), confidence=0.95)
    return KernelTime(layer=layer, form=form, ms=1 / ratio, float_ms=1.0, speedup=speedup)


def said(*rows: KernelTime, schemes: tuple[str, ...] = ("w8a8",)) -> list[str]:
    return list(advise(rows, schemes=schemes))


def test_every_layer_and_form_has_words() -> None:
    assert set(LAYER_WORDS) == {layer.key for layer in LAYERS}
    assert set(FORM_WORDS) == set(Form)


def test_the_largest_ratio_is_named_first_with_the_option_that_writes_it() -> None:
    (line,) = said(row("conv", Form.DYNAMIC, 0.1), row("conv", Form.STATIC, 3.0))
    assert line == ("Convolutions: best seen is static int8 (3.00x, --scheme w8a8); slower: dynamic int8 (0.10x)")
    (turned,) = said(row("conv", Form.DYNAMIC, 3.0), row("conv", Form.STATIC, 0.1))
    assert turned == (
        "Convolutions: best seen is dynamic int8 (3.00x, no --scheme writes it yet); slower: static int8 (0.10x)"
    )


@pytest.mark.parametrize("schemes", [("w8a8",), ("w8a8", "w8a16")])
def test_an_option_is_named_only_where_there_is_one(schemes: tuple[str, ...]) -> None:
    (line,) = said(row("gemm-1", Form.WEIGHTS_8_ROUNDED, 3.0), schemes=schemes)
    assert ("--scheme w8a16" in line) == ("w8a16" in schemes)


@pytest.mark.parametrize(
    ("ratio", "width", "words"),
    [
        (1.5, 0.1, "best seen is"),
        (1.1, 0.2, "not decided"),  # [0.88, 1.32]
        (1.009, 0.0, "not decided"),  # nearer to 1 than two sessions of one file
        (0.7, 0.1, "slower"),
        (0.9, 0.2, "not decided"),
    ],
)
def test_the_interval_decides_and_not_the_ratio(ratio: float, width: float, words: str) -> None:
    line = said(row("add", Form.STATIC, ratio, width))[-1]
    assert words in line
    assert ("nothing is shown to be faster than float" in line) == (words != "best seen is")


def test_float16_gets_one_line_of_its_own() -> None:
    lines = said(row("conv", Form.HALF, 0.98), row("gemm-1", Form.HALF, 0.9), row("conv", Form.STATIC, 2.0))
    assert [line for line in lines if "float16" in line] == [
        "float16: faster than float nowhere here; it halves the file, not the time"
    ]
    (line,) = said(row("conv", Form.HALF, 0.98), row("gemm-1", Form.HALF, 1.9))
    assert line == "float16: faster than float in Gemm and MatMul with one row (1.90x)"


def test_what_was_not_timed_gets_no_advice() -> None:
    assert (
        said(KernelTime(layer="conv", form=Form.STATIC, refused="no"), KernelTime(layer="conv", form=Form.FLOAT)) == []
    )


@pytest.mark.parametrize(
    ("widths", "warned", "advised"),
    [((0.05, 0.05, 0.4), False, True), ((0.2, 0.2, 0.05), True, True), ((0.4, 0.4, 0.05), True, False)],
)
def test_wide_intervals_are_blamed_on_company_and_very_wide_ones_advise_nothing(
    widths: tuple[float, ...], warned: bool, advised: bool
) -> None:
    lines = said(*(row(layer.key, Form.STATIC, 2.0, width) for layer, width in zip(LAYERS, widths, strict=False)))
    assert ("idle machine" in lines[0]) == warned
    assert (len(lines) > 1) == advised
