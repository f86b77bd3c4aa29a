"""The caps on what a stranger's file may claim: name, value, unit and reason. Checked before anything is allocated.

A cap is a refusal with a message, never a truncation. They are far above what real models and data sets need, and
far below what would take a machine down.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- archives (.npz) ---------------------------------------------------------------------------------------------

MAX_ARCHIVE_MEMBERS: Final = 1024
"""Members of one archive. A model has tens of inputs at most; each costs a header read when the file is opened."""

MAX_ARCHIVE_DIRECTORY_BYTES: Final = 4 * MIB
"""Bytes that zipfile may read in one go; its largest read is the central directory, held in memory as a whole."""

MAX_ARRAY_HEADER_BYTES: Final = 10_000
"""Bytes of one .npy header: NumPy's own limit (numpy.lib.format), since the header is a Python literal to be parsed."""

MAX_DEFLATE_RATIO: Final = 1032
"""Uncompressed bytes per compressed byte that deflate can reach at all: 258 bytes in two bits (zlib technical notes,
"Maximum Compression Factor": 1032:1). A member that claims more lies about its size."""

SUSPECT_ZIP_RATIO: Final = 200
"""Ratio above which a member larger than MAX_SUSPECT_MEMBER_BYTES is refused as a bomb. Masks of all ones do compress
1000:1, so a high ratio alone is no reason."""

MAX_SUSPECT_MEMBER_BYTES: Final = GIB
"""Uncompressed bytes up to which any ratio that deflate can reach is accepted: about a second of work."""

# --- arrays ------------------------------------------------------------------------------------------------------

MAX_DIMENSIONS: Final = 32
"""Dimensions of an array: NumPy 1's own limit; NumPy 2 has 64, runtimes have less."""

MAX_EXAMPLES: Final = 2**31 - 1
"""Examples of one data set; an index fits int32."""

MAX_EXAMPLE_BYTES: Final = 512 * MIB
"""Bytes of one example of one input: the least that a batch must hold. A 4096 x 4096 RGB float picture is 201 MB."""

MAX_GROUPS_BYTES: Final = 256 * MIB
"""Bytes of the array `groups`, which is read whole: 2**25 examples of int64."""

SCAN_BATCH_BYTES: Final = 4 * MIB
"""Bytes of one batch when a data set is read only to be hashed: it need not grow with the batch size of a run."""

READ_CHUNK_BYTES: Final = 256 * KIB
"""Bytes that are read or inflated at a time; large enough to hide the call, small beside any batch."""

# --- models --------------------------------------------------------------------------------------------------------

MAX_NODES: Final = 60_000
"""Nodes and weights of one model, functions written out: the largest language models have tens of thousands."""

MAX_NODE_INPUTS: Final = 10_000
"""Inputs of one node: a Concat of a few hundred is large; loaders take the square of their number in time."""

MAX_GRAPH_DEPTH: Final = 30
"""Graphs inside of nodes inside of graphs; protobuf itself gives up at about 40."""

MAX_PROBE_REPLY_BYTES: Final = 256 * MIB
"""Bytes of outputs that are compared before and after a graph pass; 16 feature maps of 1024 x 1024 x 4 in float32."""

# --- what callers hand over ----------------------------------------------------------------------------------------

MAX_SPOOL_BYTES: Final = 16 * GIB
"""Bytes of disk on which the examples of a one-shot iterator are kept for the later passes."""

# --- pictures ------------------------------------------------------------------------------------------------------

MAX_IMAGE_PIXELS: Final = 100_000_000
"""Pixels of one picture, read from its header before it is decoded: a 100-megapixel camera; 300 MB of RGB."""

MAX_IMAGE_FILES: Final = 10_000_000
"""Pictures of one folder; ImageNet-21k has 14 million in all, and a path is held in memory for each."""

# --- text files beside models and data -----------------------------------------------------------------------------

MAX_MANIFEST_BYTES: Final = 16 * MIB
"""Bytes of a manifest.json: about 100,000 files."""

MAX_CONFIG_BYTES: Final = MIB
"""Bytes of a preprocess.json or another small file that a person writes."""

MAX_PLAN_BYTES: Final = 64 * MIB
"""Bytes of a plan.json: a line of 250 bytes for each of 250,000 sites; as objects they take five times as much."""

MAX_LABELS_BYTES: Final = GIB
"""Bytes of a labels.csv: 10 million lines of 100 bytes."""
