"""An .npz is streamed, never unpickled, and refused before anything is allocated."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbits._base import limits
from fewbits._base.errors import DataError, Exit, FewbitsError, UsageError
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Batch, all_indices
from fewbits.datasets.npz import NpzDataset

RNG = np.random.default_rng(0)


def save(path: Path, *, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def header(descr: str = "'<f4'", shape: str = "(2, 3)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def refused(path: Path, **options: str) -> FewbitsError:
    begin = time.perf_counter()
    with pytest.raises(FewbitsError) as error:
        NpzDataset(path, **options)
    # A bound on a runaway, far above the milliseconds that a refusal takes.
    assert time.perf_counter() - begin < 1
    assert error.value.message.isprintable()
    return error.value


def joined(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([batch.inputs[name] for batch in batches])


@pytest.fixture(params=[False, True], ids=["stored", "compressed"])
def example(request, tmp_path):
    arrays = {
        "x": RNG.standard_normal((23, 3, 4)).astype(np.float32),
        "mask": RNG.integers(0, 2, (23, 5)).astype(bool),
        "labels": np.arange(23) % 7,
    }
    return save(tmp_path / "data.npz", compressed=request.param, **arrays), arrays


# --- reading -------------------------------------------------------------------------------------------------------


def test_describes_what_is_there_without_reading_it(example):
    path, _ = example
    data = open_dataset(path)
    assert data.count == 23
    assert data.has_labels
    assert data.groups is None
    assert {name: (spec.dtype, spec.shape) for name, spec in data.inputs.items()} == {
        "x": (np.dtype("float32"), (3, 4)),
        "mask": (np.dtype("bool"), (5,)),
    }


@pytest.mark.parametrize("size", [1, 4, 23, 100])
@pytest.mark.parametrize("indices", [range(23), range(0, 23, 2), [3, 4, 5, 11, 22], [22], []], ids=str)
def test_batches_give_exactly_the_rows_asked_for(example, indices, size):
    path, arrays = example
    places = np.array(list(indices), dtype=np.int64)
    batches = list(NpzDataset(path).batches(places, size))
    assert [len(batch.index) for batch in batches] == [min(size, len(places) - b) for b in range(0, len(places), size)]
    if len(places):
        assert np.array_equal(np.concatenate([batch.index for batch in batches]), places)
        assert np.array_equal(joined(batches, "x"), arrays["x"][places])
        assert np.array_equal(joined(batches, "mask"), arrays["mask"][places])
        assert np.array_equal(np.concatenate([batch.labels for batch in batches]), arrays["labels"][places])


def test_batches_are_read_only_and_iterators_are_independent(example):
    path, arrays = example
    data = NpzDataset(path)
    first, second = data.batches(all_indices(23), 5), data.batches(all_indices(23), 7)
    left, right = next(first), next(second)
    assert np.array_equal(next(first).inputs["x"], arrays["x"][5:10])
    assert np.array_equal(right.inputs["x"], arrays["x"][:7])
    with pytest.raises(ValueError, match="read-only"):
        left.inputs["x"][0] = 0


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1], [23]])
def test_indices_out_of_order_or_range_are_our_own_mistake(example, indices):
    with pytest.raises(ValueError, match="strictly increasing"):
        NpzDataset(example[0]).batches(np.array(indices), 1)


def test_labels_may_bear_another_name_and_then_must_be_there(tmp_path):
    path = save(tmp_path / "d.npz", x=np.zeros((4, 1), np.float32), target=np.arange(4))
    data = NpzDataset(path, labels_key="target")
    assert list(data.inputs) == ["x"]
    assert next(data.batches(all_indices(4), 4)).labels.tolist() == [0, 1, 2, 3]
    error = refused(path, labels_key="targets")
    assert isinstance(error, UsageError)
    assert error.slug == "labels-key"
    assert "did you mean 'target'?" in error.message


def test_without_labels_batches_have_none(tmp_path):
    data = NpzDataset(save(tmp_path / "d.npz", x=np.zeros((4, 1), np.float32)))
    assert not data.has_labels
    assert next(data.batches(all_indices(4), 4)).labels is None


@pytest.mark.parametrize(
    "groups", [np.array([1, 1, 2, 2]), np.array(["anna", "anna", "bo", "cy"])], ids=["int", "text"]
)
def test_groups_are_read_whole(tmp_path, groups):
    data = NpzDataset(save(tmp_path / "d.npz", compressed=True, x=np.zeros((4, 1), np.float32), groups=groups))
    assert list(data.inputs) == ["x"]
    assert data.groups.tolist() == groups.tolist()


def test_big_endian_members_become_native(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    big = NpzDataset(save(tmp_path / "b.npz", x=values.astype(">f4")))
    little = NpzDataset(save(tmp_path / "l.npz", x=values))
    assert big.inputs["x"].dtype == np.dtype("float32")
    assert np.array_equal(next(big.batches(all_indices(3), 3)).inputs["x"], values)
    assert big.digest() == little.digest()


# --- hashes --------------------------------------------------------------------------------------------------------


def test_digest_and_keys_do_not_depend_on_compression_or_order_of_members(tmp_path):
    x, y = RNG.standard_normal((9, 4)).astype(np.float32), np.arange(9)
    stored = NpzDataset(save(tmp_path / "s.npz", x=x, labels=y))
    packed = NpzDataset(save(tmp_path / "c.npz", compressed=True, labels=y, x=x))
    assert stored.digest() == packed.digest()
    assert np.array_equal(stored.keys(), packed.keys())


def test_digest_sees_every_part(tmp_path):
    x, y, g = np.zeros((4, 2), np.float32), np.arange(4), np.arange(4)
    variants = [
        {"x": x, "labels": y, "groups": g},
        {"x": x + 1, "labels": y, "groups": g},
        {"x": x, "labels": y + 1, "groups": g},
        {"x": x, "labels": y, "groups": g + 1},
        {"x": x, "labels": y},
        {"x": x.reshape(4, 2, 1), "labels": y, "groups": g},
        {"x": x.view(np.int32), "labels": y, "groups": g},
        {"z": x, "labels": y, "groups": g},
    ]
    digests = [NpzDataset(save(tmp_path / f"{i}.npz", **variant)).digest() for i, variant in enumerate(variants)]
    assert len(set(digests)) == len(variants)


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(
        st.sampled_from([np.float32, np.uint8, np.int64, np.float16, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    ),
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 7),
)
def test_keys_follow_the_content_and_not_the_order(tmp_path_factory, values, seed, batch):
    folder = tmp_path_factory.mktemp("keys")
    order = np.random.default_rng(seed).permutation(len(values))
    plain = NpzDataset(save(folder / "a.npz", x=values, labels=np.arange(len(values))))
    mixed = NpzDataset(save(folder / "b.npz", compressed=True, x=values[order]))
    assert np.array_equal(plain.keys()[order], mixed.keys())
    equal = np.array([[a.tobytes() == b.tobytes() for a in values] for b in values])
    assert np.array_equal(plain.keys()[:, None] == plain.keys()[None, :], equal)
    assert np.array_equal(joined(list(mixed.batches(all_indices(len(order)), batch)), "x").view(np.uint8).ravel(),
                          values[order].view(np.uint8).ravel())  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_a_batch_and_not_of_the_file(tmp_path):
    """200 MB of examples in a 200 KB file; the peak may be two batches (0.4 MB each), some chunks, zipfile's own."""
    path = tmp_path / "big.npz"
    rows, row = 2000, 25_000
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(header(shape=f"({rows}, {row})")))
        for _ in range(rows):
            file.write(bytes(4 * row))
    assert path.stat().st_size < 300_000
    data = NpzDataset(path)
    tracemalloc.start()
    total = sum(len(batch.index) for batch in data.batches(all_indices(rows), 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == rows
    assert peak < 4 * limits.MIB


def test_a_subset_of_a_stored_file_is_reached_without_reading_the_rest(tmp_path):
    path = tmp_path / "sparse.npz"
    rows, row = 1000, 250_000
    zipped(path, {"x.npy": npy(header(shape="(1, 1)"), bytes(4))})
    # The same archive, its only member grown to 1 GB that is not on the disk: reading it all would be felt.
    text = npy(header(shape=f"({rows}, {row})"))
    size = len(text) + rows * row * 4
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, size, size, 5, 0) + b"x.npy"
    central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, size, size, 5, 0, 0, 0, 0, 0, 0) + b"x.npy"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + size, 0)
    with path.open("wb") as file:
        file.write(local + text)
        file.seek(len(local) + size)
        file.write(central + end)
    data = NpzDataset(path)
    begin = time.perf_counter()
    batches = list(data.batches(np.array([0, 500, 999]), 2))
    assert time.perf_counter() - begin < 1  # inflating or reading 1 GB and its checksum take longer
    assert joined(batches, "x").shape == (3, row)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_object_arrays_are_refused_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    path = tmp_path / "evil.npz"
    np.savez(path, x=np.array([Evil(), Evil()], dtype=object), allow_pickle=True)
    error = refused(path)
    assert (error.slug, error.exit_code) == ("npz-object-dtype", Exit.INPUT)
    plain = tmp_path / "plain.npz"
    plain.write_bytes(pickle.dumps(Evil()))
    assert refused(plain).slug == "npz-broken"
    assert not canary.exists()


LIES = {
    "more rows than bytes": (npy(header(shape="(2000000000, 3)"), bytes(24)), "npz-shape"),
    "fewer rows than bytes": (npy(header(shape="(1, 3)"), bytes(24)), "npz-shape"),
    "4 TiB": (npy(header(shape="(1099511627776,)"), bytes(24)), "npz-shape"),
    "2^31 x 2^31": (npy(header(shape="(2147483648, 2147483648)"), bytes(16)), "npz-shape"),
    "overflowing product": (npy(header(shape="(4294967296, 4294967296)"), bytes(0)), "npz-shape"),
    "many empty examples": (npy(header(shape="(9223372036854775807, 0)")), "npz-too-large"),
    "huge example": (npy(header(shape="(0, 1000000000)")), "npz-too-large"),
    "negative": (npy(header(shape="(-1, 3)"), bytes(24)), "npz-header"),
    "bool axis": (npy(header(shape="(True, 3)"), bytes(12)), "npz-header"),
    "float axis": (npy(header(shape="(2.0, 3)"), bytes(24)), "npz-header"),
    "list shape": (npy(header(shape="[2, 3]"), bytes(24)), "npz-header"),
    "33 axes": (npy(header(shape="(" + "1, " * 33 + ")"), bytes(4)), "npz-header"),
    "code": (npy(header(shape="__import__('os').getcwd()"), bytes(24)), "npz-header"),
    "nested": (npy("(" * 9000, bytes(24)), "npz-header"),
    "nul": (npy(header() + "\0", bytes(24)), "npz-header"),
    "extra key": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}", bytes(24)), "npz-header"),
    "no dict": (npy("[]", bytes(24)), "npz-header"),
    "unhashable": (npy("{[]: 1}", bytes(24)), "npz-header"),
    "escape": (npy(header(descr="'\\d'"), bytes(24)), "npz-dtype"),
    "empty": (b"", "npz-header"),
    "magic only": (b"\x93NUMPY", "npz-header"),
    "short header": (npy(header())[:30], "npz-header"),
    "version 9": (npy(header(), bytes(24), version=(9, 0)), "npz-header"),
    "4 GiB header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(100), "npz-header"),
    "long header": (npy(header() + " " * 20_000, bytes(24)), "npz-header"),
    "structured": (npy(header(descr="[('a', '<f4')]"), bytes(24)), "npz-dtype"),
    "object": (npy(header(descr="'|O'"), bytes(48)), "npz-object-dtype"),
    "object, native": (npy(header(descr="'O'"), bytes(48)), "npz-object-dtype"),
    "hidden object": (npy(header(descr="'f4,O'"), bytes(24)), "npz-dtype"),
    "subarray": (npy(header(descr="'(1000000,1000000)f4'"), bytes(24)), "npz-dtype"),
    "void": (npy(header(descr="'|V2'"), bytes(12)), "npz-dtype"),
    "huge text": (npy(header(descr="'<U999999999'"), bytes(12)), "npz-dtype"),
    "large text": (npy(header(descr="'<U99999'"), bytes(12)), "npz-shape"),
    "no such": (npy(header(descr="'<q9'"), bytes(24)), "npz-dtype"),
    "complex": (npy(header(descr="'<c8'"), bytes(48)), "npz-dtype"),
    "long double": (npy(header(descr="'<f16'"), bytes(96)), "npz-dtype"),
    "date": (npy(header(descr="'<M8'"), bytes(48)), "npz-dtype"),
    "text input": (npy(header(descr="'<U1'"), bytes(24)), "npz-dtype"),
    "fortran": (npy(header(fortran="True"), bytes(24)), "npz-fortran-order"),
    "scalar": (npy(header(shape="()"), bytes(4)), "data-first-axis"),
    "empty example": (npy(header(shape="(3, 0)")), "data-empty"),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("case", LIES)
def test_a_member_that_lies_or_cannot_be_read_is_refused(tmp_path, case, method):
    data, slug = LIES[case]
    error = refused(zipped(tmp_path / "d.npz", {"x.npy": data}, method))
    assert (error.slug, error.exit_code) == (slug, Exit.INPUT)


def test_fortran_flag_is_fine_where_both_orders_are_one(tmp_path):
    path = zipped(tmp_path / "d.npz", {"x.npy": npy(header(shape="(6, 1)", fortran="True"), bytes(24))})
    assert NpzDataset(path).count == 6
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(np.zeros((3, 4), np.float32)))
    assert refused(tmp_path / "f.npz").slug == "npz-fortran-order"


def claim(path: Path, size: int) -> None:
    """Makes the only member's entry in the zip directory, and its local header, claim so many bytes."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = data.rindex(signature) + offset
        data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data)


def test_64_kb_that_claim_4_gib_are_refused(tmp_path):
    rows = 2**32 // 4 - 1000
    text = npy(header(shape=f"({rows}, 1)"))
    path = zipped(tmp_path / "bomb.npz", {"x.npy": text + bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 65_536
    claim(path, len(text) + rows * 4)
    error = refused(path)
    assert (error.slug, error.exit_code) == ("npz-bomb", Exit.INPUT)


def test_a_true_bomb_is_refused_by_its_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SUSPECT_MEMBER_BYTES", limits.MIB)  # so that the test need not write 1 GiB
    text = npy(header(shape=f"(2, {limits.MIB})"))
    path = zipped(tmp_path / "d.npz", {"x.npy": text + bytes(8 * limits.MIB)}, zipfile.ZIP_DEFLATED)
    assert refused(path).slug == "npz-bomb"


def test_a_mask_of_ones_is_no_bomb(tmp_path):
    data = NpzDataset(save(tmp_path / "d.npz", compressed=True, mask=np.ones((1000, 1000), np.int64)))
    assert data.count == 1000


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """The overlap bomb (D. Fifield, "A better zip bomb", 2019): many entries, one kernel."""
    path = zipped(tmp_path / "d.npz", {"x.npy": npy(header(shape="(1000, 3)"), bytes(12_000))})
    data = path.read_bytes()
    start, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    entry = data[start:end]
    entries = b"".join(entry.replace(b"x.npy", b"%d.npy" % i) for i in range(9))
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    assert refused(path).slug == "npz-bomb"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members_are_refused(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(header(), bytes(24)))
        archive.writestr("x.npy", npy(header(), bytes(24)))
    assert refused(path).slug == "npz-duplicate"


@pytest.mark.parametrize("name", ["x.txt", "x", "../x", ".npy", "x.npy/"])
def test_members_that_are_no_arrays_are_refused(tmp_path, name):
    path = zipped(tmp_path / "d.npz", {"x.npy": npy(header(), bytes(24)), name: b""})
    assert refused(path).slug in {"npz-member", "npz-header"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_does_not_write_are_refused(tmp_path, method):
    assert refused(zipped(tmp_path / "d.npz", {"x.npy": npy(header(), bytes(24))}, method)).slug == "npz-member"


def test_names_are_never_paths_and_never_raw_in_messages(tmp_path):
    zipped(tmp_path / "d.npz", {"../../\x1b[31m\u202e.npy": npy(header(), bytes(24))})
    data = NpzDataset(tmp_path / "d.npz")
    assert list(data.inputs) == ["../../\x1b[31m\u202e"]
    zipped(tmp_path / "e.npz", {"\x1b[31m.npy": b""})
    assert "\x1b" not in str(refused(tmp_path / "e.npz"))


def test_first_axes_that_disagree_are_named(tmp_path):
    error = refused(save(tmp_path / "d.npz", a=np.zeros((4, 1)), b=np.zeros((4, 2)), labels=np.zeros(5)))
    assert error.slug == "data-first-axis"
    assert "'labels' has 5 where the others have 4" in error.message


def test_labels_of_text_and_groups_of_fractions_are_refused(tmp_path):
    x = np.zeros((2, 1), np.float32)
    assert refused(save(tmp_path / "l.npz", x=x, labels=np.array(["a", "b"]))).slug == "data-labels"
    assert refused(save(tmp_path / "g.npz", x=x, groups=np.array([0.5, 1]))).slug == "data-groups"
    assert refused(save(tmp_path / "n.npz", labels=np.arange(2))).slug == "data-empty"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(100_000)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    assert refused(path).slug in {"npz-broken", "data-empty"}


def test_a_directory_that_would_fill_memory_is_not_read(tmp_path):
    path = tmp_path / "d.npz"
    size = limits.MAX_ARCHIVE_DIRECTORY_BYTES + 1
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, size, 0, 0))
    assert refused(path).slug == "npz-broken"


def test_too_many_members_are_refused(tmp_path):
    path = zipped(tmp_path / "d.npz", {f"{i}.npy": b"" for i in range(limits.MAX_ARCHIVE_MEMBERS + 1)})
    assert refused(path).slug == "npz-too-large"


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "d.npz")
    assert refused(tmp_path / "d.npz").slug == "data-missing"


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_content_is_found_when_it_is_read(tmp_path, compressed):
    x = RNG.integers(0, 255, (100, 100), dtype=np.uint8)
    path = save(tmp_path / "d.npz", compressed=compressed, x=x)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        NpzDataset(path).digest()
    assert error.value.slug == "npz-broken"


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = save(tmp_path / "d.npz", x=np.zeros((4, 1), np.float32))
    data = NpzDataset(path)
    save(path, x=np.ones((5, 1), np.float32))
    with pytest.raises(DataError) as error:
        next(data.batches(all_indices(4), 4))
    assert error.value.slug == "data-changed"


def test_random_damage_is_refused_or_harmless_and_never_a_traceback(tmp_path):
    """600 seeded mutations of a small archive: a FewbitsError, or a data set that can be read through."""
    rng = np.random.default_rng(7)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(60, dtype=np.float32).reshape(20, 3), labels=np.arange(20))
    valid = np.frombuffer(buffer.getvalue(), np.uint8)
    path = tmp_path / "d.npz"
    refusals = 0
    for _ in range(600):
        data = valid.copy()
        places = rng.integers(0, len(data), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        end = len(data) if rng.random() < 0.8 else int(rng.integers(0, len(data)))
        path.write_bytes(data[:end].tobytes())
        with contextlib.suppress(DataError):  # anything else is a traceback
            NpzDataset(path).digest()
            continue
        refusals += 1
    assert refusals > 300


def test_zlib_really_cannot_exceed_the_ratio_that_we_call_impossible():
    size = 16 * limits.MIB
    packed = len(zlib.compress(bytes(size), 9))
    assert size / packed < limits.MAX_DEFLATE_RATIO
    assert size / packed > 0.99 * limits.MAX_DEFLATE_RATIO
