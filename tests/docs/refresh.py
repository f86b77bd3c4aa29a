"""Writes what is generated in docs/ from the code: ``python tests/docs/refresh.py``. A test says when it is due."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.floating import Exponent, Float
from fewbits.numerics.format import Fixed, Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.named import NamedScheme
from fewbits.numerics.quantizing import quantize_array
from fewbits.numerics.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
END = "<!-- end of what is generated -->"
# Up to so many magnitudes, a page shows them all.
_FEW = 32


def rules_table(target: str) -> str:
    """Returns what ``fewbits targets TARGET`` prints, as a table in Markdown."""
    command = [sys.executable, "-m", "fewbits", "targets", target, "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)["rules"]
    keys = ("op", "kind", "runs_as", "note")
    cells = [[row[key].replace("|", "/") for key in keys] for row in rows]
    return markdown(["Operator", "Kind", "Runs as", "Condition, or why float"], cells)


def formats_table() -> str:
    """Returns every format with its ends, its policies, its source and what it is held against."""
    others = deviations().COUNTERPARTS
    rows = [
        [
            f"`{fmt.name}`",
            str(fmt.stored_bits),
            f"{len(fmt.grid)}" if fmt.stored_bits <= 16 else "-",
            f"{fmt.min_value:.9g}",
            f"{fmt.max_value:.9g}",
            "no" if fmt.zero_code is None else "yes",
            "refused" if fmt.nan_code is None else f"{fmt.nan_code:#x}",
            fmt.source,
            ", ".join(("oracle", *others.get(fmt.name, ()))),
        ]
        for fmt in sorted(FORMATS.values(), key=lambda fmt: -fmt.stored_bits)
    ]
    head = ["Format", "Bits", "Values", "Smallest", "Largest", "Zero", "NaN", "Source", "Held against"]
    return markdown(head, rows)


def grids_table() -> str:
    """Returns the values of every format: all of them where they are few, else the equation."""
    rows = [[f"`{fmt.name}`", _grid(fmt)] for fmt in sorted(FORMATS.values(), key=lambda fmt: -fmt.stored_bits)]
    return markdown(["Format", "Values"], rows)


def _grid(fmt: Format) -> str:
    if isinstance(fmt, Int):
        return f"the integers from {fmt.min_code} to {fmt.max_code}"
    if isinstance(fmt, Fixed):
        return f"k / {2**fmt.fraction_bits} for the integers k from {fmt.codes()[0]} to {fmt.codes()[-1]}"
    if isinstance(fmt, Exponent):
        return "2^k for k from -127 to 127"
    if isinstance(fmt, Float) and len(fmt.grid[fmt.grid > 0]) <= _FEW:
        sign = "±" if fmt.signed else ""
        return f"0 and {sign}" + f", {sign}".join(f"{value:g}" for value in fmt.grid[fmt.grid > 0].tolist())
    if isinstance(fmt, Float):
        e, m, top = fmt.exponent_bits, fmt.mantissa_bits, fmt.max_exponent
        sign = "±" if fmt.signed else ""
        low = 1 - fmt.bias - m
        return (
            f"{sign}(1 + k/{2**m}) · 2^x for k below {2**m}, x from {1 - fmt.bias} to {top}; below, {sign}k · 2^{low} "
            f"(e{e}m{m}, {fmt.specials.value if fmt.specials.value != 'none' else 'no'} specials)"
        )
    if isinstance(fmt, Codebook):
        return ", ".join(f"{value:g}" for value in fmt.grid.tolist())
    return "all finite float32"


def schemes_table() -> str:
    """Returns every named scheme with its bits, its storage, and its signal over noise on normal numbers."""
    values = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    rows = [_scheme_row(scheme, values) for scheme in SCHEMES.values()]
    rows.sort(key=lambda row: -float(row[1]))
    return markdown(["Scheme", "Bits per weight", "dB", "Weights", "Activations", "Scales by"], rows)


def _scheme_row(scheme: NamedScheme, values: np.ndarray) -> list[str]:
    q = quantize_array(values, scheme.weight)
    wrong = values.astype(np.float64) - np.asarray(q.dequantize())
    decibels = 10 * np.log10((values.astype(np.float64) ** 2).sum() / (wrong**2).sum())
    activation = "as they are" if scheme.activation is None else scheme.activation.scheme.name
    rule = scheme.weight.rule.name if scheme.weight.scheme.scaled else "no scale"
    return [
        f"`{scheme.name}`",
        f"{q.bits_per_weight:.4g}",
        f"{decibels:.1f}",
        scheme.weight.scheme.name,
        f"{activation}, dynamic" if scheme.dynamic else activation,
        rule,
    ]


def deviations_table() -> str:
    """Returns where other libraries give other codes, what, and why ours."""
    rows = [
        [d.library, ", ".join(f"`{name}`" for name in d.formats), d.inputs, d.theirs, d.ours, d.why]
        for d in deviations().DEVIATIONS
    ]
    return markdown(["Library", "Formats", "Input", "It gives", "fewbits gives", "Why"], rows)


def deviations() -> ModuleType:
    """Returns the module that the tests hold the other libraries against."""
    place = ROOT / "tests" / "numerics" / "deviations.py"
    spec = importlib.util.spec_from_file_location("fewbits_deviations", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines)


START = "<!-- {}: generated by tests/docs/refresh.py -->\n"
# Page -> marker -> what stands there.
GENERATED: dict[str, dict[str, Callable[[], str]]] = {
    "targets.md": {"rules": partial(rules_table, "ort-cpu:vnni")},
    "openvino.md": {"openvino": partial(rules_table, "openvino:vnni")},
    "formats.md": {
        "formats": formats_table,
        "grids": grids_table,
        "schemes": schemes_table,
        "deviations": deviations_table,
    },
}


def refreshed(name: str, page: str) -> str:
    """Returns a page with what is generated today between its markers."""
    for marker, make in GENERATED[name].items():
        start = START.format(marker)
        before, found, rest = page.partition(start)
        assert found, f"{name} has no line {start!r}"
        _, _, after = rest.partition(END)
        page = f"{before}{start}\n{make()}\n\n{END}{after}"
    return page


if __name__ == "__main__":
    for name in GENERATED:
        place = DOCS / name
        place.write_text(refreshed(name, place.read_text(encoding="utf-8")), encoding="utf-8")
