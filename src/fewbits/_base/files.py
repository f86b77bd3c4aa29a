"""Files that are either the old ones or the complete new ones: hashing, atomic writing, output folders, manifests.

An output folder is written under a hidden name beside its final place, synced, and swapped into place in one step.
The hidden names of a target ``out`` are, in the same directory:

``.out.fewbits-<16 hex>.tmp``   the folder being written (or, after the swap, the replaced one until it is removed)
``.out.fewbits.old``            the replaced folder during the two-step swap of systems that cannot exchange names
``.out.fewbits.lock``           locked (flock) for as long as a run writes to ``out``; removed at its end

Whoever holds the lock owns the others, so a killed run is cleaned up by the next. POSIX only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from fewbits._base import limits, posix
from fewbits._base.errors import (
    FewbitsError,
    InputError,
    ResourceError,
    SecurityError,
    UsageError,
    VerificationError,
)

MANIFEST_NAME: Final = "manifest.json"
MANIFEST_FORMAT: Final = "fewbits-output"
_RESERVED_KEYS: Final = frozenset(
    {"format", "format_version", "files", "timing_files", "content_sha256", "manifest_sha256"}
)
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO})


# --- hashing -------------------------------------------------------------------------------------------------------


def sha256_bytes(data: bytes) -> str:
    """Returns the SHA-256 of data in lower-case hexadecimal.

    >>> sha256_bytes(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's content in lower-case hexadecimal, read in pieces.

    Raises: InputError(slug="input-unreadable") if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot read {os.fspath(path)!r}: {error.strerror}; check the path and its permissions",
            slug="input-unreadable",
        ) from error


# --- one file ------------------------------------------------------------------------------------------------------


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at path by data: a reader, or a crash, sees the old bytes or all of the new.

    A symbolic link is followed, so that what it points to is replaced. If only the last step fails (syncing the
    directory) the new bytes are in place, and the error says that a power loss may still bring back the old.

    Raises: ResourceError(slug="disk-full" | "output-unwritable"); the old file and no temporary one are left.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{posix.short(target.name)}.fewbits-{secrets.token_hex(8)}.tmp"
    with _refusals(path):
        try:
            posix.write_new(temporary, data, mode=0o600)
            os.chmod(temporary, 0o666 & ~posix.umask())  # noqa: PTH101 - the os functions are what the fault tests fail
            os.rename(temporary, target)  # noqa: PTH104
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        posix.sync_folder(target.parent)


def check_plain_name(name: str) -> str:
    """Returns name if it is a plain file name: one path component without control or invisible characters.

    Raises: SecurityError(slug="unsafe-name") otherwise.
    """
    reason = None
    if not name or name in {".", ".."}:
        reason = "is not a file name"
    elif any(character in "/\\:" for character in name):
        reason = "contains a path separator"
    elif any(unicodedata.category(character).startswith("C") for character in name):
        reason = "contains a control, surrogate or invisible character"
    elif len(name.encode()) > 255:
        reason = "is longer than 255 bytes"
    if reason:
        raise SecurityError(f"file name {name!r} {reason}; use a plain name such as 'model.onnx'", slug="unsafe-name")
    return name


def _refusal(error: OSError, where: str | os.PathLike[str]) -> ResourceError:
    why = error.strerror or type(error).__name__
    if error.errno in _DISK_FULL:
        return ResourceError(
            f"no space left to write {os.fspath(where)!r} ({why}); free some or choose another place", slug="disk-full"
        )
    return ResourceError(
        f"cannot write {os.fspath(where)!r} ({why}); choose a place that can be written", slug="output-unwritable"
    )


@contextmanager
def _refusals(where: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(error, where) from error


# --- a folder ------------------------------------------------------------------------------------------------------


class OutputFolder:
    """A folder that appears complete or not at all.

    Use::

        with OutputFolder("out", overwrite=True, inputs=["model.onnx", "data.npz"]) as out:
            out.write("plan.json", plan)
            save_model(out.path("model.onnx"))
            out.commit({"seed": 0}, timing_files=["timings.json"])

    Leaving the block without ``commit``, or by an exception, leaves the old output as it was. Entering refuses early,
    before any work is done. After ``commit`` a process killed at any moment, and a power loss, leave the old folder
    or the new one. Where the kernel cannot exchange two names (RENAME_EXCHANGE; macOS, some network file systems) the
    old folder is first moved to its hidden name: a kill between the two renames leaves no folder at the target, and the
    next run on it moves the old one back before it does anything else.

    Args:
      target: The folder's final place. Missing parent folders are made.
      overwrite: Whether a complete fewbits output at the target may be replaced. Anything else is never replaced,
        except an empty folder.
      inputs: Files and folders that are read; the target may not be, contain, or lie inside one of them.
    Raises: on entry UsageError(slug="output-exists" | "output-foreign" | "output-is-input") and
      ResourceError(slug="output-locked" | "output-unwritable" | "disk-full"); the latter two from every method.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self._shown = os.fspath(target)
        self._target = Path(os.path.realpath(target))
        self._overwrite = overwrite
        self._inputs = [os.fspath(path) for path in inputs]
        prefix = f".{posix.short(self._target.name)}.fewbits"
        self._prefix = prefix + "-"
        self._temporary = self._target.parent / f"{prefix}-{secrets.token_hex(8)}.tmp"
        self._old = self._target.parent / f"{prefix}.old"
        self._lock_path = self._target.parent / f"{prefix}.lock"
        self._lock: int | None = None
        self._made_parents: list[Path] = []
        self._committed = False

    def __enter__(self) -> OutputFolder:
        _refuse_inputs(self._target, self._shown, self._inputs)
        with _refusals(self._shown):
            try:
                self._make_parents()
                self._lock = self._take_lock()
                self._clean_killed_runs()
                _check_replaceable(self._target, self._shown, overwrite=self._overwrite)
                self._temporary.mkdir(mode=0o700)
            except BaseException:
                self._leave()
                raise
        return self

    def path(self, name: str) -> Path:
        """Returns where to write the file of that name now; it is synced and hashed by ``commit``.

        Raises: SecurityError(slug="unsafe-name") unless name is a plain file name.
        """
        if check_plain_name(name) == MANIFEST_NAME:
            raise ValueError(f"{MANIFEST_NAME} is written by commit()")
        return self._temporary / name

    @property
    def folder(self) -> Path:
        """The hidden folder that will become the output: what is large may be written there from the start."""
        return self._temporary

    @property
    def committed(self) -> bool:
        """Whether the output is in place: what goes wrong from now on changes nothing of it."""
        return self._committed

    def write(self, name: str, data: bytes) -> Path:
        """Writes one file into the folder and returns its present path; a name may be used once."""
        path = self.path(name)
        with _refusals(self._shown):
            posix.write_new(path, data, mode=0o666)
        return path

    def commit(self, details: Mapping[str, Any], *, timing_files: Collection[str] = ()) -> None:
        """Writes the manifest, syncs everything, and swaps the folder into place.

        Args:
          details: What else the manifest says: versions, seed, hashes of the inputs. JSON values.
          timing_files: Names of files that hold timings: hashed too, but apart, and not part of ``content_sha256``.
        Raises: ResourceError; the old output is then still in place, and nothing else is left.
        """
        assert self._lock is not None, "commit() belongs inside the with block"
        assert not self._committed, "commit() belongs there once"
        with _refusals(self._shown):
            entries = {path.name: _seal(path) for path in sorted(self._temporary.iterdir())}
            manifest = _manifest_bytes(entries, details, timing_files)
            posix.write_new(self._temporary / MANIFEST_NAME, manifest, mode=0o666)
            os.chmod(self._temporary, 0o777 & ~posix.umask())  # noqa: PTH101
            posix.sync_folder(self._temporary)
            for parent in self._made_parents:
                posix.sync_folder(parent.parent)
            # Looked at again: someone without our lock may have put something there meanwhile.
            _check_replaceable(self._target, self._shown, overwrite=self._overwrite)
            posix.swap(self._temporary, self._target, self._old)
            self._committed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except BaseException:  # Ctrl-C in the midst of it: what is left is removed all the same
            self._leave()
            raise
        if isinstance(error, OSError) and self._is_ours(error):
            raise _refusal(error, self._shown) from error

    def _is_ours(self, error: OSError) -> bool:
        """Tells a failure to write here from one to read an input: what other code wrote through path() raises too."""
        name = error.filename
        inside = isinstance(name, str | os.PathLike) and self._temporary in Path(name).parents
        return error.errno in _DISK_FULL or (inside and error.errno in _UNWRITABLE)

    def _leave(self) -> None:
        """Removes whatever is hidden; never raises: what cannot be removed now, the next run removes."""
        with suppress(OSError):
            for path in (self._temporary, self._old) if self._lock is not None else ():
                if path.is_dir() and (path != self._old or self._committed):
                    shutil.rmtree(path, ignore_errors=True)
        if self._lock is not None:
            with suppress(OSError):
                self._lock_path.unlink()  # while it is still locked, so that nobody can hold a removed file
            lock, self._lock = self._lock, None
            os.close(lock)
        if not self._committed:
            for parent in reversed(self._made_parents):
                with suppress(OSError):
                    parent.rmdir()
        self._made_parents = []

    def _take_lock(self) -> int:
        try:
            return posix.take_lock(self._lock_path)
        except BlockingIOError as error:
            raise ResourceError(
                f"another fewbits run is writing to {self._shown!r}; wait for it or choose another output folder",
                slug="output-locked",
            ) from error

    def _make_parents(self) -> None:
        missing = [parent for parent in self._target.parents if not parent.exists()]
        for parent in reversed(missing):
            with suppress(FileExistsError):
                parent.mkdir()
                self._made_parents.append(parent)

    def _clean_killed_runs(self) -> None:
        if self._old.is_dir():
            if os.path.lexists(self._target):
                shutil.rmtree(self._old, ignore_errors=True)
            else:
                os.rename(self._old, self._target)  # noqa: PTH104
        for path in self._target.parent.iterdir():
            if path.name.startswith(self._prefix) and path.name.endswith(".tmp") and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def _refuse_inputs(target: Path, shown: str, inputs: Sequence[str]) -> None:
    def same(left: Path, right: Path) -> bool:
        return left == right or (left.exists() and right.exists() and left.samefile(right))

    for name in inputs:
        path = Path(os.path.realpath(name))
        with suppress(OSError):  # an input that cannot be looked at is refused by whoever opens it
            if any(same(target, place) for place in (path, *path.parents)) or any(
                same(place, path) for place in target.parents
            ):
                raise UsageError(
                    f"output {shown!r} is, contains, or lies inside the input {name!r}; choose another output folder",
                    slug="output-is-input",
                )


def _check_replaceable(target: Path, shown: str, *, overwrite: bool) -> None:
    """Refuses a target that holds anything which fewbits did not write there itself."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(
            f"output {shown!r} exists and is not a folder; choose another name or remove it", slug="output-foreign"
        )
    names = sorted(os.listdir(target))  # noqa: PTH208
    if not names:
        return
    try:
        manifest = read_manifest(target)
    except FewbitsError as error:
        raise UsageError(
            f"output folder {shown!r} is not empty and holds no fewbits manifest; choose another name or empty it",
            slug="output-foreign",
        ) from error
    if not overwrite:
        raise UsageError(
            f"output folder {shown!r} exists; choose another name or pass --overwrite", slug="output-exists"
        )
    known = {MANIFEST_NAME, *manifest["files"], *manifest["timing_files"]}
    foreign = [name for name in names if name not in known]
    if foreign:
        raise UsageError(
            f"output folder {shown!r} holds {foreign[0]!r}, which fewbits did not write and would remove;"
            " move it away or choose another name",
            slug="output-foreign",
        )


# --- manifests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One difference between a folder and its manifest; ``str()`` is the line that a user sees."""

    name: str
    kind: Literal["missing", "extra", "changed"]

    def __str__(self) -> str:
        return f"{self.name!r} is {self.kind}"


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of an output folder: its form is checked, not yet the files (see verify_manifest).

    Has ``files`` and ``timing_files`` (name -> {"bytes", "sha256"}), ``content_sha256`` (over ``files``: equal for
    equal results, whatever the timings) and what the writer added.

    Raises: VerificationError(slug="manifest-missing" | "manifest-broken"), SecurityError(slug="unsafe-name").
    """
    return _parse_manifest(_manifest_text(folder), os.fspath(folder))


def verify_manifest(folder: str | os.PathLike[str]) -> list[Mismatch]:
    """Returns how the folder differs from its manifest: files missing, extra or changed; empty if every bit is right.

    The manifest holds its own hash, so that one flipped bit in it shows too (as "changed").

    Raises: as read_manifest.
    """
    text = _manifest_text(folder)
    manifest = _parse_manifest(text, os.fspath(folder))
    unsigned = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    mismatches = []
    if text != _json(_signed(unsigned)):
        mismatches.append(Mismatch(name=MANIFEST_NAME, kind="changed"))
    entries: dict[str, dict[str, Any]] = {**manifest["files"], **manifest["timing_files"]}
    there = set(os.listdir(folder)) - {MANIFEST_NAME}  # noqa: PTH208
    for name in sorted(there | entries.keys()):
        path = Path(folder) / name
        if name not in entries:
            mismatches.append(Mismatch(name=name, kind="extra"))
        elif name not in there:
            mismatches.append(Mismatch(name=name, kind="missing"))
        elif (
            not stat.S_ISREG(path.lstat().st_mode)
            or path.lstat().st_size != entries[name]["bytes"]
            or sha256_file(path) != entries[name]["sha256"]
        ):
            mismatches.append(Mismatch(name=name, kind="changed"))
    return mismatches


def _seal(path: Path) -> dict[str, Any]:
    """Syncs one file of the folder and returns its entry in the manifest."""
    check_plain_name(path.name)
    if not stat.S_ISREG(path.lstat().st_mode):
        raise SecurityError(f"output {path.name!r} is not a plain file; only files are kept", slug="unsafe-name")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - Path.open cannot refuse to follow a link
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(descriptor)
        return {"bytes": os.fstat(descriptor).st_size, "sha256": digest}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "manifest_sha256": sha256_bytes(_json(manifest))}


def _manifest_bytes(entries: Mapping[str, Any], details: Mapping[str, Any], timing_files: Collection[str]) -> bytes:
    clash = sorted(_RESERVED_KEYS & details.keys())
    unknown = sorted(set(timing_files) - entries.keys())
    if clash or unknown:
        raise ValueError(f"reserved manifest keys {clash}, timing files that were not written {unknown}")
    files = {name: entry for name, entry in entries.items() if name not in timing_files}
    return _json(
        _signed(
            {
                **details,
                "format": MANIFEST_FORMAT,
                "format_version": 1,
                "files": files,
                "timing_files": {name: entries[name] for name in timing_files},
                "content_sha256": sha256_bytes(_json(files)),
            }
        )
    )


def _manifest_text(folder: str | os.PathLike[str]) -> bytes:
    path = Path(folder) / MANIFEST_NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size > limits.MAX_MANIFEST_BYTES:
            raise VerificationError(
                f"manifest.json in {os.fspath(folder)!r} is not a plain file of at most"
                f" {limits.MAX_MANIFEST_BYTES} bytes; make the output again",
                slug="manifest-broken",
            )
        return path.read_bytes()
    except OSError as error:
        raise VerificationError(
            f"{os.fspath(folder)!r} has no readable manifest.json ({error.strerror}): it is not a complete fewbits"
            " output; make it again",
            slug="manifest-missing",
        ) from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parse_manifest(text: bytes, folder: str) -> dict[str, Any]:
    broken = VerificationError(
        f"manifest.json in {folder!r} is damaged or not written by fewbits; make the output again",
        slug="manifest-broken",
    )
    try:
        manifest = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise broken from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise broken
    for key in ("files", "timing_files"):
        entries = manifest.get(key)
        if not isinstance(entries, dict):
            raise broken
        for name, entry in entries.items():
            check_plain_name(name)
            if not (isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()):
                raise broken
    return manifest
