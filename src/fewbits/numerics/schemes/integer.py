"""Integer weights, with integer activations or with those of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NamedScheme:
    """What a shorthand asks of a target: how many bits, for what, and when activations' ranges are known.

    Args:
      name: The shorthand, e.g. ``w8a8``.
      weight_bits: Bits of the weights.
      activation_bits: Bits of the activations.
      dynamic: Whether activation scales are computed at run time instead of calibrated.
    """

    name: str
    weight_bits: int
    activation_bits: int
    dynamic: bool = False

    @property
    def weights_only(self) -> bool:
        """Whether activations stay as they are: nothing is calibrated, and no data are needed."""
        return self.activation_bits >= 16


SCHEMES: tuple[NamedScheme, ...] = (
    NamedScheme(name="w8a8", weight_bits=8, activation_bits=8),
    NamedScheme(name="w8a16", weight_bits=8, activation_bits=16),
)
