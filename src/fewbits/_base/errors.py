"""The drawn error tree: one class per exit code of the command line, one slug per message of docs/messages.md.

FewbitsError                       1  internal
├── UsageError                     2  impossible option, output equal to input
│   └── UnknownNameError              … a name that a catalog does not hold
├── InputError                     4  a file or array that is refused
│   ├── ModelError                    … the model file
│   ├── DataError                     … calibration, selection or verdict data
│   └── NumericsError                 … an array given to the numerics
├── TargetError                    5  the target cannot represent it, or nothing to quantize
├── ResourceError                  6  memory, disk, unwritable place, time
├── SecurityError                  7  a file that reaches outside its place
└── VerificationError              8  what was stored is not what is there
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes of the command line; the contract that scripts rely on."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NOT_MET = 3
    INPUT = 4
    TARGET = 5
    RESOURCE = 6
    SECURITY = 7
    VERIFICATION = 8
    INTERRUPTED = 130


class FewbitsError(Exception):
    """A refusal that a user can act on.

    Args:
      message: One line: what, where, why, what to do.
      slug: Key of the message in docs/messages.md; printed in brackets behind the message.
    """

    exit_code: ClassVar[Exit] = Exit.INTERNAL

    def __init__(self, message: str, *, slug: str) -> None:
        super().__init__(message)
        self.message = message
        self.slug = slug

    def __str__(self) -> str:
        return f"{self.message} [{self.slug}]"


class UsageError(FewbitsError):
    """An option, or a combination of options, that cannot be meant."""

    exit_code = Exit.USAGE


class UnknownNameError(UsageError, KeyError):
    """A name that a catalog does not hold; a KeyError too, so that catalogs keep the contract of mappings."""


class InputError(FewbitsError):
    """A file or array that is refused."""

    exit_code = Exit.INPUT


class ModelError(InputError):
    """A model file that is refused."""


class DataError(InputError):
    """Data that are refused; names the example's index, what was expected, what was got."""


class NumericsError(InputError):
    """An array that the numerics refuse."""


class TargetError(FewbitsError):
    """The target cannot represent what was asked, or nothing can be quantized; carries the reasons."""

    exit_code = Exit.TARGET


class ResourceError(FewbitsError):
    """Memory, disk, an unwritable place, or time."""

    exit_code = Exit.RESOURCE


class SecurityError(FewbitsError):
    """A file that would reach outside its place."""

    exit_code = Exit.SECURITY


class VerificationError(FewbitsError):
    """Stored hashes or golden outputs differ from what is there."""

    exit_code = Exit.VERIFICATION
