"""All hostile files, by group."""

from __future__ import annotations

from attacks import archives, bombs, broken, external, graphs, names, pictures, plans, shapes
from attacks.case import Case

GROUPS: dict[str, str] = {
    "broken": "Files that are no model",
    "external": "External data that lead elsewhere",
    "shapes": "Tensors that claim other sizes or types than they have",
    "graphs": "Graphs, functions and attributes that no network has",
    "bombs": "A few bytes that ask for gigabytes, or for ever",
    "names": "Names that a page, a terminal or a file system could take for commands",
    "npz": "Archives of examples",
    "pictures": "Folders of pictures and preprocess.json",
    "plan": "Plans",
}
_MODULES = (broken, external, shapes, graphs, bombs, names, archives, pictures, plans)
CASES: list[Case] = [case for module in _MODULES for case in module.CASES]
