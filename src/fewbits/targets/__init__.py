"""The catalog of targets: what a runtime accepts, as data. No runtime needs to be installed to read it."""

from __future__ import annotations

from fewbits._base.catalog import Catalog, nearest
from fewbits._base.cpu import instruction_set, native_bf16
from fewbits._base.errors import UsageError
from fewbits.targets._candidates import Reason, candidate
from fewbits.targets._dynamic import (
    FIRST_FORMS,
    Forms,
    dynamic_nodes,
    dynamic_rule,
    dynamic_scheme,
    forms_without_ranges,
    may_be_coarse,
    may_be_dynamic,
    place_dynamic,
    place_forms,
)
from fewbits.targets._paired import carriers, may_be_paired
from fewbits.targets._placement import PlacedSite, Placement, integer_nodes, place
from fewbits.targets._stored import (
    block_fault,
    not_written,
    place_stored,
    refuse_none_in_blocks,
    storable,
    stored_rule,
    stored_scheme,
)
from fewbits.targets.base import Target

__all__ = [
    "FIRST_FORMS",
    "TARGETS",
    "Forms",
    "PlacedSite",
    "Placement",
    "Reason",
    "block_fault",
    "candidate",
    "carriers",
    "dynamic_nodes",
    "dynamic_rule",
    "dynamic_scheme",
    "forms_without_ranges",
    "integer_nodes",
    "may_be_coarse",
    "may_be_dynamic",
    "may_be_paired",
    "not_written",
    "place",
    "place_dynamic",
    "place_forms",
    "place_stored",
    "refuse_none_in_blocks",
    "resolve_target",
    "storable",
    "stored_rule",
    "stored_scheme",
]

TARGETS: Catalog[Target] = Catalog(__name__, "TARGET", kind="target")


def resolve_target(text: str) -> Target:
    """Returns the target ``NAME[:INSTRUCTION_SET]``; this machine's instruction set where none is given.

    Where the runtime computes in bfloat16 unless told otherwise, and this machine does so natively, that is it.

    Raises: UsageError for unknown names, with the nearest one.
    """
    name, _, isa = text.partition(":")
    if name == "auto":
        raise UsageError(
            "the target 'auto' takes the fastest of several, timed, and is for 'fewbits quantize' without a plan; "
            f"name one here: {', '.join(TARGETS)}",
            slug="target-auto",
        )
    target = TARGETS[name]
    here = "bf16" if "bf16" in target.variants and native_bf16() else instruction_set()
    wanted = isa or (target.isa if target.by_scheme else here)
    if wanted not in target.variants:
        known = sorted(target.variants)
        raise UsageError(
            f"target {name!r} has no instruction set {wanted!r}; {nearest(wanted, known)}", slug="unknown-name"
        )
    return target.for_instruction_set(wanted)
