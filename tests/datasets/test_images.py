"""Pictures become what the model was trained on, and what is no honest picture is refused by name."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fewbits._base import limits
from fewbits._base.errors import DataError, Exit, FewbitsError, SecurityError, UsageError
from fewbits.datasets import open_dataset
from fewbits.datasets.base import all_indices
from fewbits.datasets.preprocess import parse_preprocess

RNG = np.random.default_rng(2)


def pixels(height=12, width=10, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(array, mode=None):
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def folder_of(path, pictures, preprocess=None, labels=None):
    path.mkdir(exist_ok=True)
    (path / "preprocess.json").write_text(json.dumps(preprocess or {}))
    lines = ["file,label"]
    for number, (name, image) in enumerate(pictures.items()):
        image.save(path / name) if hasattr(image, "save") else (path / name).write_bytes(image)
        lines.append(f"{name},{number}")
    (path / "labels.csv").write_text("\n".join(labels or lines) + "\n")
    return path


def read(source):
    data = open_dataset(source)
    return next(data.batches(all_indices(data.count), data.count))


def refused(source) -> FewbitsError:
    with pytest.raises(FewbitsError) as error:
        open_dataset(source).digest()
    assert error.value.message.isprintable()
    return error.value


# --- what a model gets ---------------------------------------------------------------------------------------------


def test_values_follow_the_documented_formula(tmp_path):
    image = pixels()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    batch = read(folder_of(tmp_path / "d", {"a.png": picture(image)}, {"mean": mean, "std": std}))
    expected = (image.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    assert np.array_equal(batch.inputs["image"], expected.transpose(2, 0, 1)[None])
    assert batch.inputs["image"].dtype == np.float32
    assert batch.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({"dtype": "uint8", "layout": "NHWC"}, lambda x: x),
        ({"dtype": "uint8"}, lambda x: x.transpose(2, 0, 1)),
        ({"dtype": "uint8", "layout": "NHWC", "color": "BGR"}, lambda x: x[:, :, ::-1]),
        ({"scale": 1, "layout": "NHWC"}, lambda x: x.astype(np.float32)),
        ({"scale": 2, "mean": 1, "std": 4, "layout": "NHWC"}, lambda x: (x.astype(np.float32) * 2 - 1) / 4),
        ({"scale": "1/127", "mean": 1, "layout": "NHWC"}, lambda x: x.astype(np.float32) / np.float32(127) - 1),
        ({"dtype": "uint8", "layout": "NHWC", "crop": 4}, lambda x: x[4:8, 3:7]),
        ({"dtype": "uint8", "layout": "NHWC", "crop": [5, 10]}, lambda x: x[4:9]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_each_key_does_what_it_says(tmp_path, preprocess, expected):
    image = pixels()
    batch = read(folder_of(tmp_path / "d", {"a.png": picture(image)}, preprocess))
    assert np.array_equal(batch.inputs["image"][0], expected(image))


@pytest.mark.parametrize(
    ("size", "shape"),
    [(6, (7, 6)), ([4, 9], (4, 9)), (20, (24, 20)), ([12, 10], (12, 10))],
)
def test_size_keeps_the_ratio_or_is_exact(tmp_path, size, shape):
    batch = read(folder_of(tmp_path / "d", {"a.png": picture(pixels())}, {"size": size}))
    assert batch.inputs["image"].shape == (1, 3, *shape)


def test_gray_has_one_channel(tmp_path):
    image = pixels(channels=1)
    batch = read(folder_of(tmp_path / "d", {"a.png": picture(image)}, {"color": "L", "dtype": "uint8"}))
    assert np.array_equal(batch.inputs["image"][0], image.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_8_bit_modes_become_rgb(tmp_path, mode):
    image = picture(pixels()).convert(mode)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    batch = read(folder_of(tmp_path / "d", {name: image}, {"dtype": "uint8"}))
    with Image.open(tmp_path / "d" / name) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(batch.inputs["image"][0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The eight cases of EXIF 2.32, tag 274: where row 0 and column 0 of the stored pixels belong."""
    upright = pixels()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = folder_of(tmp_path / "d", {"a.png": picture(upright)}, {"dtype": "uint8", "layout": "NHWC"})
    Image.fromarray(np.ascontiguousarray(stored)).save(path / "a.png", exif=exif)
    assert np.array_equal(read(path).inputs["image"][0], upright)


def test_the_input_s_name_comes_from_the_file_then_the_caller(tmp_path):
    plain = folder_of(tmp_path / "a", {"a.png": picture(pixels())})
    named = folder_of(tmp_path / "b", {"a.png": picture(pixels())}, {"input": "data"})
    assert list(open_dataset(plain).inputs) == ["image"]
    assert list(open_dataset(plain, input_name="x").inputs) == ["x"]
    assert list(open_dataset(named, input_name="x").inputs) == ["data"]


def test_batches_equal_an_npz_of_the_same_pictures(tmp_path):
    images = np.stack([pixels() for _ in range(7)])
    source = folder_of(
        tmp_path / "d",
        {f"{i}.png": picture(image) for i, image in enumerate(images)},
        {"dtype": "uint8", "layout": "NHWC"},
    )
    np.savez(tmp_path / "d.npz", image=images, labels=np.arange(7))
    mine, theirs = open_dataset(source), open_dataset(tmp_path / "d.npz")
    assert mine.digest() == theirs.digest()
    assert np.array_equal(mine.keys(), theirs.keys())
    places = np.array([1, 2, 5])
    pairs = zip(mine.batches(places, 2), theirs.batches(places, 2), strict=True)
    assert all(left.same(right) for left, right in pairs)


def test_the_same_picture_in_two_formats_has_one_key(tmp_path):
    image = picture(pixels())
    keys = open_dataset(folder_of(tmp_path / "d", {"a.png": image, "b.bmp": image, "c.png": picture(pixels())})).keys()
    assert keys[0] == keys[1] != keys[2]


# --- the listing ---------------------------------------------------------------------------------------------------


def classes(path, names):
    path.mkdir()
    (path / "preprocess.json").write_text("{}")
    for name in names:
        (path / name).mkdir()
        picture(pixels()).save(path / name / "a.png")
    return path


def test_sub_folders_are_classes_in_sorted_order_or_by_their_number(tmp_path):
    assert read(classes(tmp_path / "a", ["dog", "cat", "ant"])).labels.tolist() == [0, 1, 2]
    assert sorted(read(classes(tmp_path / "b", ["10", "2", "0"])).labels.tolist()) == [0, 2, 10]


def test_labels_csv_may_have_more_columns_and_a_group(tmp_path):
    images = {"a.png": picture(pixels()), "b.png": picture(pixels())}
    lines = ["name,label,file,group", "x,7,a.png,anna", "y,3,b.png,bo"]
    data = open_dataset(folder_of(tmp_path / "d", images, labels=lines))
    assert next(data.batches(all_indices(2), 2)).labels.tolist() == [7, 3]
    assert data.groups.tolist() == ["anna", "bo"]


@pytest.mark.parametrize(
    ("lines", "slug", "code"),
    [
        (["a.png,0"], "labels-file", Exit.INPUT),
        (["file,label", "a.png,cat"], "labels-file", Exit.INPUT),
        (["file,label", "a.png"], "labels-file", Exit.INPUT),
        (["file,label", "a.png,-1"], "labels-file", Exit.INPUT),
        (["file,label", "a.png,99999999999999999999"], "labels-file", Exit.INPUT),
        (["file,label"], "data-empty", Exit.INPUT),
        (["file,label", "b.png,0"], "image-missing", Exit.INPUT),
        (["file,label", ",0"], "image-path", Exit.SECURITY),
        (["file,label", "../a.png,0"], "image-path", Exit.SECURITY),
        (["file,label", "x/../../a.png,0"], "image-path", Exit.SECURITY),
        (["file,label", "/etc/hostname,0"], "image-path", Exit.SECURITY),
        (["file,label", "..\\a.png,0"], "image-path", Exit.SECURITY),
    ],
)
def test_a_bad_labels_csv_is_refused(tmp_path, lines, slug, code):
    error = refused(folder_of(tmp_path / "d", {"a.png": picture(pixels())}, labels=lines))
    assert (error.slug, error.exit_code) == (slug, code)


def test_labels_csv_that_is_no_text_is_refused(tmp_path):
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels())})
    (source / "labels.csv").write_bytes(b"file,label\n\xff\xfe,0\n")
    assert refused(source).slug == "labels-file"


def test_a_link_out_of_the_folder_and_a_pipe_are_refused(tmp_path):
    picture(pixels()).save(tmp_path / "outside.png")
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels())})
    (source / "a.png").unlink()
    (source / "a.png").symlink_to("../outside.png")
    error = refused(source)
    assert isinstance(error, SecurityError)
    (source / "a.png").unlink()
    os.mkfifo(source / "a.png")
    assert refused(source).slug == "image-missing"


def test_other_layouts_are_refused_by_name(tmp_path):
    source = classes(tmp_path / "a", ["cat"])
    (source / "cat" / "notes.txt").write_text("x")
    assert "notes.txt" in refused(source).message
    (source / "cat" / "notes.txt").unlink()
    (source / "loose.png").write_bytes(b"")
    error = refused(source)
    assert error.slug == "images-layout"
    assert "loose.png" in error.message


# --- preprocess.json -----------------------------------------------------------------------------------------------


def test_without_preprocess_json_nothing_is_guessed(tmp_path):
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels())})
    (source / "preprocess.json").unlink()
    error = refused(source)
    assert error.slug == "preprocess-missing"
    assert '"mean"' in error.message


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"unknown key 'means'; did you mean 'mean'\?") as error:
        parse_preprocess({"means": 1})
    assert error.value.slug == "preprocess-key"


@pytest.mark.parametrize(
    "content",
    [
        {"size": 0},
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"size": [1]},
        {"size": [224, 0]},
        {"size": 10**9},
        {"crop": "224"},
        {"layout": "HWC"},
        {"layout": []},
        {"color": "CMYK"},
        {"dtype": "float64"},
        {"dtype": "uint8", "mean": 0},
        {"dtype": "uint8", "scale": 1},
        {"mean": [1, 2]},
        {"mean": "0"},
        {"mean": [0, 0, float("nan")]},
        {"mean": 10**400},
        {"std": 0},
        {"std": [1, 1, -1]},
        {"color": "L", "mean": [0, 0, 0]},
        {"scale": "1/0"},
        {"scale": "a/b"},
        {"scale": None},
        {"scale": "1/" + "9" * 400},
        {"input": ""},
        {"input": 3},
    ],
    ids=lambda content: str(content)[:30],
)
def test_a_value_out_of_place_is_refused(content):
    with pytest.raises(DataError) as error:
        parse_preprocess(content)
    assert error.value.slug == "preprocess-value"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_preprocess_json_that_is_none_is_refused(tmp_path, text):
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels())})
    (source / "preprocess.json").write_bytes(text.encode("latin-1"))
    assert refused(source).slug == "preprocess-value"


# --- broken and hostile pictures -------------------------------------------------------------------------------------


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def encoded(kind):
    import io

    buffer = io.BytesIO()
    picture(pixels(40, 40)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "image-broken"),
        (b"hello", "image-broken"),
        (encoded("JPEG")[:400], "image-broken"),
        (encoded("PNG")[:400], "image-broken"),
        (png_claiming(12, 12), "image-broken"),
        (png_claiming(50_000, 50_000), "image-too-large"),
        (png_claiming(2**31 - 1, 2**31 - 1), "image-too-large"),
        (png_claiming(11_000, 11_000), "image-too-large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image-broken"),
    ],
    ids=["empty", "text", "short-jpeg", "short-png", "no-data", "bomb", "huge-bomb", "just-too-large", "eps"],
)
def test_a_broken_or_hostile_picture_is_refused_by_name(tmp_path, data, slug):
    good = folder_of(tmp_path / "d", {"a.png": picture(pixels()), "b.png": data})
    error = refused(good)
    assert (error.slug, error.exit_code) == (slug, Exit.INPUT)
    assert "b.png" in error.message


def test_16_bit_gray_float_and_several_frames_are_refused(tmp_path):
    deep = Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 600)
    real = Image.fromarray(np.zeros((10, 10), np.float32))
    many = tmp_path / "many.tiff"
    picture(pixels()).save(many, save_all=True, append_images=[picture(pixels())])
    for name, image in {"a.png": deep, "b.tiff": real, "c.tiff": many.read_bytes()}.items():
        error = refused(folder_of(tmp_path / name.split(".")[0], {name: image}))
        assert (error.slug, error.exit_code) == ("image-mode", Exit.INPUT)
        assert name in error.message


def test_pictures_of_unequal_size_are_refused_by_name(tmp_path):
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels()), "b.png": picture(pixels(13))})
    error = refused(source)
    assert error.slug == "image-shape"
    assert "b.png" in error.message
    (source / "preprocess.json").write_text('{"crop": 13}')
    assert refused(source).slug == "image-shape"


def test_a_thin_picture_cannot_be_blown_up(tmp_path):
    source = folder_of(tmp_path / "d", {"a.png": picture(pixels(10_000, 1))}, {"size": 1000})
    assert limits.MAX_IMAGE_PIXELS < 1000 * 10_000 * 1000
    assert refused(source).slug == "image-too-large"


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    source = folder_of(tmp_path / "d", {})
    with pytest.raises(UsageError) as error:
        open_dataset(source)
    assert "pip install fewbits[images]" in error.value.message
    assert error.value.slug == "extra-missing"
