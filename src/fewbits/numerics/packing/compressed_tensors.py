"""compressed-tensors checkpoints, as llm-compressor writes and vLLM reads them; one layout for each of its formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.packing._compressed import Form, PackedFloats, PackedIntegers, PlainCodes, invertible
from fewbits.numerics.packing._parts import no_scheme
from fewbits.numerics.packing.base import Layout
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.scheme import Scheme

__all__ = ["LAYOUT", "CompressedTensors", "invertible"]

_NAME = "compressed-tensors"
_FORMS: dict[str, Form] = {
    "pack-quantized": PackedIntegers(),
    "int-quantized": PlainCodes(FORMATS["int8"]),
    "float-quantized": PlainCodes(FORMATS["fp8_e4m3"]),
    "mxfp8-quantized": PlainCodes(FORMATS["fp8_e4m3"], exponents=True),
    "nvfp4-pack-quantized": PackedFloats(exponents=False),
    "mxfp4-pack-quantized": PackedFloats(exponents=True),
}


@final
@dataclass(frozen=True, slots=True)
class CompressedTensors(Layout):
    """The tensors of a linear layer, their names behind the module's: ``weight_packed`` or ``weight``, scales, more.

    w = (q - zero_point) * scale, and for NVFP4 w = q * (local scale / global scale).

    Args:
      format: Its name in the config; empty: the one that the scheme asks for. Integers are then packed, which is right
        for weights alone; beside 8-bit integer activations readers want ``int-quantized``: ask for it.
    Source: compressed-tensors 0.20, compressors.
    """

    format: str = ""

    @property
    def name(self) -> str:
        return f"{_NAME}:{self.format}" if self.format else _NAME

    @property
    def reader(self) -> str:
        return "vLLM, transformers, compressed-tensors"

    @property
    def variants(self) -> tuple[Layout, ...]:
        return (LAYOUT, *(CompressedTensors(form) for form in _FORMS))

    def format_of(self, scheme: Scheme) -> str:
        """Returns the ``format`` of the config under which a scheme is packed.

        Raises: TargetError(slug="layout-scheme") where none is meant for such codes.
        """
        if self.format:
            return self.format
        exponents = scheme.scale == FORMATS["e8m0"]
        if isinstance(scheme.format, Int):
            return "pack-quantized"
        if scheme.format.name == "fp8_e4m3":
            return "mxfp8-quantized" if exponents else "float-quantized"
        if scheme.format.name == "fp4_e2m1":
            return "mxfp4-pack-quantized" if exponents else "nvfp4-pack-quantized"
        raise no_scheme(
            _NAME, scheme, "its codes are integers, fp8_e4m3 or fp4_e2m1", "use int4-g128, fp8, mxfp8, nvfp4 or mxfp4"
        )

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        self._form(scheme).check(self.name, scheme, shape)

    def _form(self, scheme: Scheme) -> Form:
        return _FORMS[self.format_of(scheme)]

    def pack(self, q: QTensor) -> dict[str, Array]:
        self.check(q.scheme, q.shape)
        return self._form(q.scheme).pack(self.name, q)

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        self.check(scheme, shape)
        return self._form(scheme).unpack(self.name, tensors, scheme, shape)


LAYOUT: Layout = CompressedTensors()
