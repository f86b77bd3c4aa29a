"""What a packing layout is: how one reader wants the tensors of a quantized weight, byte for byte."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from fewbits._base.arrays import Array
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.scheme import Scheme


class Layout(ABC):
    """How a reader wants a quantized tensor. ``unpack(pack(q), q.scheme, q.shape)`` is q, bit for bit.

    (A scale of shape () comes back in the tensor's rank, and a zero point of -0 as 0.)
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in the catalog; that of a variant is its own."""

    @property
    @abstractmethod
    def reader(self) -> str:
        """Who reads it, for the docs."""

    @property
    def variants(self) -> tuple[Layout, ...]:
        """The layouts of this reader, the usual one first: versions and formats that it tells apart by a name."""
        return (self,)

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:  # noqa: B027 - a layout may know it only in pack
        """Raises TargetError with the nearest legal thing if no tensor of this scheme and shape can be packed.

        What depends on the values of scales and zero points shows in ``pack``.
        """

    @abstractmethod
    def pack(self, q: QTensor) -> dict[str, Array]:
        """Returns the tensors exactly as they lie on disk, by the names that the reader uses.

        Args:
          q: A weight [out, in], its reduction axis last, unless the layout says more.
        Raises: TargetError with the nearest legal thing for what the layout cannot hold.
        """

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        """Returns the quantized tensor that was packed; tensors of other names are left alone.

        Args:
          tensors: What ``pack`` gave, or a file holds.
          scheme: How the codes are to be read.
          shape: Of the weight, [out, in].
        Raises: TargetError as ``check``; NumericsError for a tensor that is missing, or of another dtype or shape.
        """
