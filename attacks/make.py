"""Writes the hostile files into a folder, one sub-folder each.

python -m attacks.make FOLDER [GROUP[/CASE] ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from attacks.catalog import CASES
from attacks.running import write


def main(place: Path, wanted: list[str]) -> None:
    """Writes each case that is wanted, all where none is named, and prints where it lies."""
    for case in CASES:
        if not wanted or case.name in wanted or case.group in wanted:
            folder = place / case.name
            folder.mkdir(parents=True)
            print(write(case, folder))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
