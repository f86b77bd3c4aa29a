"""Evidence: paired bounds on the loss, the verdict, how many examples it needs, and how data are split for it."""

from fewbits.evidence.paired import PairedBound, paired_bound, relative_bound, trinomial_bound
from fewbits.evidence.planner import examples_needed, smallest_certifiable_budget
from fewbits.evidence.splits import FRACTIONS, Split, find_overlap, split_by_hash
from fewbits.evidence.verdict import Verdict, decide

__all__ = [
    "FRACTIONS",
    "PairedBound",
    "Split",
    "Verdict",
    "decide",
    "examples_needed",
    "find_overlap",
    "paired_bound",
    "relative_bound",
    "smallest_certifiable_budget",
    "split_by_hash",
    "trinomial_bound",
]
