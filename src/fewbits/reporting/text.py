"""Makes text from strangers' files harmless before a person or a terminal sees it. Light: needs no library."""

from __future__ import annotations

import re
import unicodedata

# ECMA-48: control sequences (CSI), control strings (DCS, SOS, OSC, PM, APC) up to their terminator, other escapes;
# each in its 7-bit form (ESC and a letter) and its 8-bit form (C1). A string that never ends loses only its opening;
# the body stops at the next control, which keeps the time linear.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_BLANKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# Cc: controls; Cf: bidirectional marks, zero-width and tag characters; Cs: lone surrogates, which no encoder accepts.
_UNWANTED = frozenset({"Cc", "Cf", "Cs"})
_ASCII = str.maketrans(
    {"×": "x", "−": "-", "–": "-", "—": "-", "→": "->", "…": "...", "≤": "<=", "≥": ">=", "±": "+/-", "·": "|"}
    | {"\u00a0": " ", "\u202f": " ", "‘": "'", "’": "'", "“": '"', "”": '"'}
)


def _is_noncharacter(code: int) -> bool:
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def clean(text: str, *, limit: int | None = None) -> str:
    """Returns text on one line without escape sequences, control, bidirectional and invisible characters.

    What is left prints as itself, moves no cursor, and reads in the order in which it is stored. Line breaks and tabs
    become one space, none at the ends. HTML, Markdown and YAML need their own quoting on top of this.
    clean(clean(x)) == clean(x).

    Args:
      text: Any string, lone surrogates included.
      limit: Longest result in characters, at least 3; the middle of a longer one becomes an ellipsis.

    >>> clean("conv\\x1b[31m1\\x00\\u202egnp.exe")
    'conv1gnp.exe'
    >>> clean("layer.0.attention.query.weight", limit=13)
    'layer.…weight'
    """
    # One pass is enough: whatever it joins together or leaves over has lost, as a control character, what makes it one.
    text = _BLANKS.sub(" ", _ESCAPES.sub("", text))
    kept = "".join(c for c in text if unicodedata.category(c) not in _UNWANTED and not _is_noncharacter(ord(c))).strip()
    if limit is None or len(kept) <= limit:
        return kept
    tail = (limit - 1) // 2
    return f"{kept[: limit - 1 - tail]}…{kept[-tail:]}"


def fold(text: str, encoding: str) -> str:
    """Returns text in characters that the encoding has: our own signs by ASCII look-alikes, others as escapes.

    >>> fold("3.9× smaller: a → b", "ascii")
    '3.9x smaller: a -> b'
    >>> fold("naïve 模", "ascii")
    'na\\\\xefve \\\\u6a21'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return fold(text, "ascii")
    return text
