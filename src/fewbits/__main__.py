"""``python -m fewbits``: the command line without its script."""

from fewbits.cli import main

main()
