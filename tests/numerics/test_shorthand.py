"""Shorthands parse, print, and an unknown one gives the nearest name."""

import numpy as np
import pytest

import fewbits
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.scheme import parse_scheme
from fewbits.numerics.schemes import SCHEMES

ARRAY = {
    "int8": "int8 per-tensor symmetric",
    "int8-channel": "int8 per-channel(0) symmetric",
    "int4-g128": "int4 per-group(-1, 128) symmetric",
    "uint4-g32-asym": "uint4 per-group(-1, 32) asymmetric",
    "int8-token": "int8 per-token(-1) symmetric",
    "nf4-f64": "nf4 per-flat(64) symmetric",
    "fp8_e4m3-b128x128": "fp8_e4m3 per-block(128, 128) symmetric",
    "fp4_e2m1-g16-scale-fp8_e4m3": "fp4_e2m1 per-group(-1, 16) symmetric, scale fp8_e4m3",
    "w8a8": "int8 per-channel(0) symmetric",
    "w4a16-g128": "int4 per-group(-1, 128) symmetric",
    "w4a16-g128-asym-scale-fp16": "uint4 per-group(-1, 128) asymmetric, scale fp16",
    "w2a16-g64": "int2 per-group(-1, 64) symmetric",
    "mxfp4": "fp4_e2m1 per-group(-1, 32) symmetric, scale e8m0",
    "nvfp4": "fp4_e2m1 per-group(-1, 16) symmetric, scale (ue4m3 per-tensor symmetric)",
    "fp8": "fp8_e4m3 per-channel(0) symmetric",
    "fp16": "fp16 per-tensor symmetric, unscaled",
    "binary": "binary per-channel(0) symmetric",
}


@pytest.mark.parametrize("name", ARRAY)
def test_a_shorthand_of_an_array_spells_its_scheme(name):
    assert SCHEMES.of_array(name).scheme.name == ARRAY[name]
    assert SCHEMES.of_array(name).name == name
    assert parse_scheme(ARRAY[name]).name == ARRAY[name]


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits", "dynamic"),
    [
        ("w8a8", 8, 8, False),
        ("w8a8-dynamic", 8, 8, True),
        ("w4a8", 4, 8, False),
        ("w4a8-g64-dynamic", 4, 8, True),
        ("w8a16", 8, 16, False),
        ("w3a16-g128", 3, 16, False),
        ("w5a6", 5, 6, False),
        ("nvfp4", 4, 4, True),
        ("nvfp4a16", 4, 16, False),
        ("fp8", 8, 8, False),
    ],
)
def test_a_shorthand_of_a_model_says_weights_activations_and_when(name, weight_bits, activation_bits, dynamic):
    scheme = SCHEMES[name]
    assert (scheme.name, scheme.weight_bits, scheme.activation_bits) == (name, weight_bits, activation_bits)
    assert scheme.dynamic == dynamic
    assert scheme.weights_only == (activation_bits == 16)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mxpf4", "mxfp4"),
        ("w4a61-g128", "w4a16-g128"),
        ("nvf4", "nvfp4"),
        ("int4g128", "int4-g128"),
        ("nf5", "nf4"),
        ("binry", "binary"),
    ],
)
def test_an_unknown_shorthand_gives_the_nearest_name(name, hint):
    with pytest.raises(fewbits.UsageError, match=f"did you mean '{hint}'") as caught:
        fewbits.quantize_array(np.ones((2, 256), np.float32), name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "w9a8",
        "w8a32",
        "w8",
        "int4-g0",
        "int4-g",
        "int4-g8-channel",
        "nf4-asym",
        "int8-scale-fp99",
        "INT8",
        "w8a16-dynamic",
        "",
    ],
)
def test_what_is_no_shorthand_is_refused(name):
    assert name not in SCHEMES
    with pytest.raises(fewbits.UsageError, match="scheme-shorthand"):
        fewbits.quantize_array(np.ones((2, 256), np.float32), name)


def test_the_catalog_lists_no_name_twice_and_finds_the_public_names_of_the_formats():
    assert len(set(SCHEMES)) == len(SCHEMES)
    assert "w8a8" in SCHEMES and "nonsense" not in SCHEMES and 3 not in SCHEMES
    asked = (
        "int2 int3 int4 int5 int6 int7 int8 int16 uint2 uint3 uint4 uint5 uint6 uint7 uint8 uint16 binary ternary fp16"
    )
    asked += " bf16 fp8_e4m3 fp8_e5m2 fp6_e3m2 fp6_e2m3 fp4_e2m1 nf4 e8m0 ue4m3"
    assert set(asked.split()) <= set(fewbits.formats)
    assert fewbits.formats["nf4"] is FORMATS["nf4"]
    with pytest.raises(KeyError, match="did you mean 'fp8_e4m3'"):
        fewbits.formats["fp8_e4m3fn"]
