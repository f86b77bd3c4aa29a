"""Where other libraries turn the same values into other codes, as data: test_against_others.py holds them to it.

Each entry is tested both ways: the library does give this on these inputs, and agrees bit for bit on all others.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One way in which a library's cast is not ours.

    Args:
      library: Whose cast.
      formats: Our names of the formats whose cast deviates so.
      inputs: On which values; the test has a predicate of this name.
      theirs: What the library gives.
      ours: What fewbits gives.
      why: The reason, theirs or ours.
      everywhere: False where it depends on the processor, so that another machine may not show it.
    """

    library: str
    formats: tuple[str, ...]
    inputs: str
    theirs: str
    ours: str
    why: str
    everywhere: bool = True


_SATURATES = "the largest finite value of that sign"
_ONE_NAN = "the one NaN without sign and payload"
_REFUSED = "refused: the format has no code for NaN"
_INFINITY_WHY = "IEEE 754 overflows; a weight that becomes infinite ruins a model, and fewbits saturates everywhere"
_NAN_WHY = "a NaN's sign and payload mean nothing here, and equal inputs are to give equal codes in every library"
_NO_NAN_WHY = "the cast has to give something; a silent number in the place of NaN hides the fault"
_C_CAST_WHY = "an integer type's cast is C's; rounding and clipping are the caller's (as ours do in encode)"

DEVIATIONS = (
    Deviation(
        library="ml_dtypes",
        formats=("fp8_e4m3",),
        inputs="beyond the rounding of the largest value",
        theirs="NaN of that sign",
        ours=_SATURATES,
        why="OCP OFP8 1.0 defines a saturating and a non-saturating conversion; ml_dtypes has the second",
    ),
    Deviation(
        library="ml_dtypes",
        formats=("fp8_e5m2", "bf16"),
        inputs="beyond the rounding of the largest value",
        theirs="infinity of that sign",
        ours=_SATURATES,
        why=_INFINITY_WHY,
    ),
    Deviation(
        library="ml_dtypes",
        formats=("fp8_e4m3", "fp8_e5m2", "bf16"),
        inputs="NaN with a sign",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
    Deviation(
        library="ml_dtypes",
        formats=("fp4_e2m1", "fp6_e3m2", "fp6_e2m3"),
        inputs="NaN",
        theirs="zero, of the opposite sign",
        ours=_REFUSED,
        why=_NO_NAN_WHY,
    ),
    Deviation(
        library="ml_dtypes",
        formats=("e8m0",),
        inputs="zero and below",
        theirs="NaN",
        ours="the smallest power of two",
        why="a scale of NaN ruins its block; the smallest power is the nearest value of the format",
    ),
    Deviation(
        library="ml_dtypes",
        formats=("e8m0",),
        inputs="ties whose lower code is even",
        theirs="the larger power of two",
        ours="the even code",
        why="E8M0 has no mantissa to be even; ties to the even code are the rule of every other format here",
    ),
    Deviation(
        library="ml_dtypes",
        formats=("e8m0",),
        inputs="above 2**-127, up to the middle of it and 2**-126",
        theirs="2**-126",
        ours="2**-127, the nearer, and the even code at the middle",
        why="2**-127 is a denormal float32 whose pattern has half of its mantissa set, and is rounded as a pattern",
    ),
    Deviation(
        library="ml_dtypes",
        formats=("e8m0",),
        inputs="from 1.5 times the largest power",
        theirs="NaN",
        ours=_SATURATES,
        why="as for fp8: fewbits saturates everywhere",
    ),
    Deviation(
        library="ml_dtypes",
        formats=("int2", "int4", "uint2", "uint4"),
        inputs="inside the ends, where truncation and rounding differ",
        theirs="the integer towards zero",
        ours="the nearest integer",
        why=_C_CAST_WHY,
    ),
    Deviation(
        library="ml_dtypes",
        formats=("int2", "int4", "uint2", "uint4"),
        inputs="outside the ends",
        theirs="some code: the low bits, or what the processor makes of it",
        ours=_SATURATES,
        why=_C_CAST_WHY,
    ),
    Deviation(
        library="ml_dtypes",
        formats=("int2", "int4", "uint2", "uint4"),
        inputs="NaN",
        theirs="some code",
        ours=_REFUSED,
        why=_NO_NAN_WHY,
    ),
    Deviation(
        library="numpy",
        formats=("fp16",),
        inputs="beyond the rounding of the largest value",
        theirs="infinity of that sign",
        ours=_SATURATES,
        why=_INFINITY_WHY,
    ),
    Deviation(
        library="numpy",
        formats=("fp16",),
        inputs="NaN",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
    Deviation(
        library="torch",
        formats=("fp16", "bf16", "fp8_e5m2"),
        inputs="beyond the rounding of the largest value",
        theirs="infinity of that sign",
        ours=_SATURATES,
        why=_INFINITY_WHY,
    ),
    Deviation(
        library="torch",
        formats=("fp16", "fp8_e5m2"),
        inputs="NaN",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
    Deviation(
        library="torch",
        formats=("fp8_e4m3",),
        inputs="NaN with a sign",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
    Deviation(
        library="torch",
        formats=("bf16",),
        inputs="NaN",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY + "; which NaN depends on the kernel that torch has for the processor",
        everywhere=False,
    ),
    Deviation(
        library="torch",
        formats=("e8m0",),
        inputs="negative values",
        theirs="the code of their magnitude",
        ours="the smallest power of two",
        why="the sign bit is dropped; the nearest value of the format is its smallest",
    ),
    Deviation(
        library="torch",
        formats=("e8m0",),
        inputs="ties whose lower code is even",
        theirs="the larger power of two",
        ours="the even code",
        why="E8M0 has no mantissa to be even; ties to the even code are the rule of every other format here",
    ),
    Deviation(
        library="torch",
        formats=("e8m0",),
        inputs="above 2**-127, up to the middle of it and 2**-126",
        theirs="2**-126",
        ours="2**-127, the nearer, and the even code at the middle",
        why="2**-127 is a denormal float32 whose pattern has half of its mantissa set, and is rounded as a pattern",
    ),
    Deviation(
        library="torch",
        formats=("e8m0",),
        inputs="from 1.5 times the largest power",
        theirs="NaN",
        ours=_SATURATES,
        why="as for fp8: fewbits saturates everywhere",
    ),
    Deviation(
        library="onnxruntime",
        formats=("int2", "int4", "int8", "int16", "uint2", "uint4", "uint8", "uint16"),
        inputs="NaN",
        theirs="some code",
        ours=_REFUSED,
        why=_NO_NAN_WHY,
    ),
    Deviation(
        library="onnxruntime",
        formats=("int2", "uint2"),
        inputs="from 2**31",
        theirs="the smallest value",
        ours=_SATURATES,
        why="the number becomes an int32 before it is clipped, and 2**31 is none; x86 makes it the smallest one",
        everywhere=False,
    ),
    Deviation(
        library="onnxruntime",
        formats=("fp8_e4m3", "fp8_e5m2"),
        inputs="NaN with a sign",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
    Deviation(
        library="onnxruntime, saturate=0",
        formats=("fp8_e4m3",),
        inputs="beyond 464, but for magnitudes from 480 to below 496",
        theirs="NaN of that sign",
        ours=_SATURATES,
        why="the attribute asks for it (the default is 1); from 480 to 496 the runtime itself gives 448, against it",
    ),
    Deviation(
        library="onnxruntime, saturate=0",
        formats=("fp8_e4m3",),
        inputs="NaN with a sign",
        theirs="a NaN of its own",
        ours=_ONE_NAN,
        why=_NAN_WHY,
    ),
)

# Format -> the libraries whose cast of it is compared, over all float16 and bfloat16 inputs and every tie.
COUNTERPARTS = {
    "fp16": ("numpy", "torch"),
    "bf16": ("ml_dtypes", "torch"),
    "fp8_e4m3": ("ml_dtypes", "onnxruntime", "torch"),
    "fp8_e5m2": ("ml_dtypes", "onnxruntime", "torch"),
    "e8m0": ("ml_dtypes", "torch"),
    "fp6_e3m2": ("ml_dtypes",),
    "fp6_e2m3": ("ml_dtypes",),
    "fp4_e2m1": ("ml_dtypes",),
    "int8": ("onnxruntime",),
    "uint8": ("onnxruntime",),
    "int16": ("onnxruntime",),
    "uint16": ("onnxruntime",),
    "int4": ("ml_dtypes", "onnxruntime"),
    "uint4": ("ml_dtypes", "onnxruntime"),
    "int2": ("ml_dtypes", "onnxruntime"),
    "uint2": ("ml_dtypes", "onnxruntime"),
}
