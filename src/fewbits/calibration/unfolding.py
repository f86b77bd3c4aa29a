"""What a convolution multiplies its weight by: its inputs, unfolded (im2col), at some of its positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np

# The float model's inputs are taken in so many parts of a step: binary fractions, so that sums stay exact.
_PARTS = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a convolution looks.

    Args:
      kernel: Taps along each spatial axis.
      strides: Steps between positions.
      before: Zeros in front of each spatial axis.
      after: Zeros behind it.
      dilations: Steps between taps.
      group: Groups of channels that do not see each other.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int

    def windows(self, values: np.ndarray) -> np.ndarray:
        """Returns [examples, channels, *positions, *taps], a view of the padded values [examples, channels, *space]."""
        space = tuple(range(2, values.ndim))
        pads = ((0, 0), (0, 0), *zip(self.before, self.after, strict=True))
        padded = np.pad(values, pads) if any(self.before) or any(self.after) else values
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=space)
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
        return seen[(*steps, *(slice(None, None, d) for d in self.dilations))]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns [channels, *taps] float64, the sum over examples and positions of what each tap sees.

        Along one axis after the other; exact where the values are integers.
        """
        total = values.sum(axis=0, dtype=np.float64)
        looks = list(zip(self.kernel, self.strides, self.before, self.after, self.dilations, strict=True))
        for kernel, stride, before, after, dilation in reversed(looks):
            length = total.shape[-1]
            positions = (length + before + after - (kernel - 1) * dilation - 1) // stride + 1
            seen = np.arange(kernel)[:, None] * dilation + np.arange(positions) * stride - before
            inside = (seen >= 0) & (seen < length)
            matrix = np.zeros((length, kernel))
            matrix[seen[inside], np.nonzero(inside)[0]] = 1
            total = np.moveaxis(total @ matrix, -1, 1)  # the taps of later axes go behind those of earlier ones
        return np.asarray(total)


def window_of(attributes: Mapping[str, object], weight_shape: tuple[int, ...]) -> Window | None:
    """Returns the window of a Conv by its attributes; None where they leave it to the input's size (auto_pad).

    >>> window_of({"pads": (1, 1, 1, 1), "strides": (2, 2)}, (8, 3, 3, 3)).kernel
    (3, 3)
    """
    space = len(weight_shape) - 2
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        return None
    ones, zeros = (1,) * space, (0,) * (2 * space)
    pads = _integers(attributes, "pads", zeros)
    return Window(
        kernel=weight_shape[2:],
        strides=_integers(attributes, "strides", ones),
        before=pads[:space],
        after=pads[space:],
        dilations=_integers(attributes, "dilations", ones),
        group=_integers(attributes, "group", (1,))[0],
    )


def _integers(attributes: Mapping[str, object], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = attributes.get(name, default)
    return tuple(int(v) for v in found) if isinstance(found, tuple | list) else (int(str(found)),)


@final
class InputMoments:
    """First and second moments of a layer's inputs, over examples that come in batches.

    Inputs are integers (codes less their zero point), so that float64 sums of their products are exact: the same in
    any order, by any number of threads. The first moment is over all positions, the second over a sample of them; so is
    the cross moment with the float model's inputs at the same positions, which are taken in sixteenths of a step.

    Args:
      groups: Groups of inputs that are multiplied by different weights.
      size: Inputs of one output, K.
    """

    def __init__(self, *, groups: int, size: int) -> None:
        self._sum = np.zeros((groups, size))
        self._positions = 0
        self._products = np.zeros((groups, size, size))
        self._cross: np.ndarray | None = None
        self.rows = 0

    def add(
        self, total: np.ndarray, positions: int, sample: np.ndarray, float_sample: np.ndarray | None = None
    ) -> None:
        """Takes a batch in.

        Args:
          total: Sum over all positions, [groups, K].
          positions: How many those are.
          sample: Inputs at some positions, [rows, groups, K].
          float_sample: What the float model has there, in the same steps; None where it is not asked for.
        """
        self._sum += total
        self._positions += positions
        rows = np.ascontiguousarray(sample.transpose(1, 0, 2), dtype=np.float64)
        self._products += rows.transpose(0, 2, 1) @ rows
        self.rows += len(sample)
        if float_sample is not None:
            wanted = np.rint(_PARTS * float_sample.transpose(1, 0, 2).astype(np.float64)) / _PARTS
            products = rows.transpose(0, 2, 1) @ wanted
            self._cross = products if self._cross is None else self._cross + products

    @property
    def mean(self) -> np.ndarray:
        """E[x], [groups, K] float64."""
        return self._sum / max(1, self._positions)

    @property
    def second(self) -> np.ndarray:
        """Sum of x x^T over the sample, [groups, K, K] float64."""
        return self._products

    @property
    def cross(self) -> np.ndarray | None:
        """Sum of x x_f^T over the sample, [groups, K, K] float64; None without the float model's inputs."""
        return self._cross


def unfolded(
    values: np.ndarray, window: Window, *, rows: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, int, np.ndarray]:
    """Returns the sum over all positions [groups, K], their number, and a sample of rows [rows, groups, K].

    Args:
      values: [examples, channels, *space].
      window: Where the convolution looks.
      rows: How many positions are drawn, without repetition; all where there are no more.
      seed: Of the drawing.
    """
    seen = window.windows(values)
    space = values.ndim - 2
    count, channels, positions = seen.shape[0], seen.shape[1], seen.shape[2 : 2 + space]
    inputs = channels // window.group * prod(window.kernel)
    every = count * prod(positions)
    total = window.sums(values)
    places = np.arange(every)
    if rows < every:
        drawn = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        places = np.sort(drawn.choice(every, rows, replace=False))
    example, *spot = np.unravel_index(places, (count, *positions))
    # The drawn positions come first, then the channels, then the taps.
    where: Any = (example, slice(None), *spot)
    taken = seen[where]
    return (
        total.reshape(window.group, inputs),
        every,
        taken.reshape(len(places), window.group, inputs),
    )
