"""Cross-layer equalization: channels whose weights differ in size, brought to one size by factors between layers."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.transforms._channels import ChannelScale, inside_float32
from fewbits.algorithms.transforms.base import Transform

# Sweeps over a chain, and the change of a factor below which another one is not worth it.
_SWEEPS = 32
_SETTLED = 1.01


def equalizing_factors(layers: Sequence[Array], links: Sequence[tuple[int, tuple[int, ...]]]) -> list[Array]:
    """Returns the factors of each link: s = sqrt(r1 / r2), swept along the chain until none changes.

    r1 is the largest magnitude of a channel's weights in the layer that gives it, r2 in the layers that take it; after
    the division both are sqrt(r1 * r2). A channel without weights on one side keeps factor 1.

    Args:
      layers: Largest magnitude of the weights between each output and input, [groups, outputs, inputs] of a group.
      links: Index of the layer that gives, and of those that take; a layer takes at most once.
    Returns: [channels] float32, between 2**-20 and 2**20, for each link.
    Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.1, equation 11.
    """
    xp = namespace(*layers)
    sizes = [xp.astype(layer, xp.float64) for layer in layers]
    factors = [xp.ones(_channels(sizes[giver]), dtype=xp.float64) for giver, _ in links]
    for _ in range(_SWEEPS):
        most = 1.0
        for number, (giver, takers) in enumerate(links):
            given = xp.reshape(xp.max(sizes[giver], axis=2), (-1,))
            taken = _largest(xp, [xp.reshape(xp.max(sizes[taker], axis=1), (-1,)) for taker in takers])
            alive = (given > 0) & (taken > 0)
            safe = xp.where(alive, given, xp.ones_like(given)) / xp.where(alive, taken, xp.ones_like(taken))
            step = xp.sqrt(safe)
            factors[number] = factors[number] * step
            sizes[giver] = sizes[giver] / xp.reshape(step, (*sizes[giver].shape[:2], 1))
            for taker in takers:
                groups, _, inputs = sizes[taker].shape
                sizes[taker] = sizes[taker] * xp.reshape(step, (groups, 1, inputs))
            most = max(most, float(xp.max(step)), float(1 / xp.min(step)))
        if most < _SETTLED:
            break
    return [xp.astype(inside_float32(found), xp.float32) for found in factors]


def _channels(sizes: Array) -> int:
    return int(sizes.shape[0] * sizes.shape[1])


def _largest(xp: object, arrays: list[Array]) -> Array:
    found = arrays[0]
    for array in arrays[1:]:
        found = namespace(array).maximum(found, array)
    return found


ALGORITHM: type[Transform] = ChannelScale
