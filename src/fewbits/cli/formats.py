"""``fewbits formats``: number formats, and the schemes that are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fewbits.cli._common import output_options, say, say_json, table

if TYPE_CHECKING:
    from fewbits.numerics.format import Format
    from fewbits.numerics.named import NamedScheme

# Bits per weight depend on the shape where a scale is one a row or one a tensor.
_SHAPE = (4096, 4096)
# Variants that the table leaves out: they differ in how the exponent of a block is chosen, not in how it is stored.
_POLICIES = ("-even", "-ceil", "-rceil")
_WORDS = (
    "MX schemes choose exponents by OCP's floor; -even, -ceil and -rceil behind the name do otherwise.",
    "A format is a scheme too: int8 has one scale, int4-g128 one for 128 elements; also -channel,",
    "-token, -b128x128 (blocks), then -asym, then -scale-fp16. A model's: w8a8, w4a16-g128,",
    "w8a8-dynamic: bits of weights and activations.",
)


@click.command("formats")
@output_options
def command(as_json: bool, quiet: bool, verbose: bool) -> int:
    """List the number formats and the named schemes that this version knows."""
    from fewbits.numerics.formats import FORMATS
    from fewbits.numerics.schemes import SCHEMES

    formats = sorted((_format_facts(fmt) for fmt in FORMATS.values()), key=lambda fact: -fact["bits"])
    schemes = sorted((_scheme_facts(scheme) for scheme in SCHEMES.values()), key=lambda fact: -fact["bits_per_weight"])
    if as_json:
        say_json({"schema_version": 1, "formats": formats, "schemes": schemes})
        return 0
    say(_formats_table(formats))
    say(["", f"Schemes: how arrays are stored in them. Bits per weight of a {_SHAPE[0]} x {_SHAPE[1]} weight."])
    say(_schemes_table([fact for fact in schemes if not fact["name"].endswith(_POLICIES)]))
    say(["", *_WORDS])
    return 0


def _format_facts(fmt: Format) -> dict[str, Any]:
    listed = fmt.stored_bits <= 16
    return {
        "name": fmt.name,
        "bits": fmt.stored_bits,
        "values": len(fmt.grid) if listed else None,
        "min": fmt.min_value,
        "max": fmt.max_value,
        "zero": fmt.zero_code is not None,
        "nan": None if fmt.nan_code is None else f"{fmt.nan_code:#x}",
        "ties": fmt.ties,
        "source": fmt.source,
    }


def _scheme_facts(scheme: NamedScheme) -> dict[str, Any]:
    weight = scheme.weight
    return {
        "name": scheme.name,
        "bits_per_weight": weight.scheme.stored_bits(_SHAPE) / (_SHAPE[0] * _SHAPE[1]),
        "weight": weight.scheme.name,
        "rule": weight.rule.name if weight.scheme.scaled else "no scale",
        "activation": None if scheme.activation is None else scheme.activation.scheme.name,
        "dynamic": scheme.dynamic,
        "source": weight.source or None,
    }


def _formats_table(facts: list[dict[str, Any]]) -> list[str]:
    head = ("format", "bits", "values", "smallest", "largest", "zero", "NaN becomes", "ties")
    return table(
        [
            (
                fact["name"],
                str(fact["bits"]),
                str(fact["values"] or "-"),
                f"{fact['min']:.9g}",
                f"{fact['max']:.9g}",
                "yes" if fact["zero"] else "no",
                fact["nan"] or "an error",
                fact["ties"],
            )
            for fact in facts
        ],
        head=head,
    )


def _schemes_table(facts: list[dict[str, Any]]) -> list[str]:
    return table(
        [(fact["name"], f"{fact['bits_per_weight']:.4g}", fact["rule"], fact["weight"]) for fact in facts],
        head=("scheme", "bits", "scales by", "weights are stored as"),
    )
