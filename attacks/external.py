"""External data that lead out of the model's folder, or claim bytes that are not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from attacks.case import ESCAPE, INERT, REFUSED, Case
from attacks.parts import HIDDEN, OPSET, WIDTH, constant, graph, honest, info, layers, model, save, weights

_LENGTH = 4 * WIDTH * HIDDEN
_OUT = frozenset({ESCAPE})
_BROKEN = frozenset({REFUSED, ESCAPE})


def outside(name: str, location: str | None, /, **more: str) -> TensorProto:
    """Returns a tensor of the first layer's shape whose values lie elsewhere."""
    entries = {**({} if location is None else {"location": location}), **more}
    return _marked(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[WIDTH, HIDDEN]), entries)


def _marked(tensor: TensorProto, entries: Mapping[str, str]) -> TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _with(first: TensorProto) -> ModelProto:
    """Returns the honest net with another first weight."""
    nodes, held = layers()
    return model(graph(nodes, [first, *held[1:]]))


def _located(
    location: str | None, prepare: Callable[[Path], None] | None = None, /, **more: str
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "weights.bin").write_bytes(weights(WIDTH, HIDDEN).tobytes())
        if prepare is not None:
            prepare(folder)
        return save(folder, _with(outside("w1", location, **more)))

    return make


def _absolute(folder: Path) -> Path:
    return save(folder, _with(outside("w1", str(folder.parent / "outside" / "secret.bin"))))


def _link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def _chain(folder: Path) -> None:
    (folder / "first").symlink_to("second")
    (folder / "second").symlink_to("../outside/secret.bin")


def _hard(folder: Path) -> None:
    (folder / "hard.bin").hardlink_to(folder.parent / "outside" / "secret.bin")


def _itself(folder: Path) -> Path:
    """Returns a model whose weight is a part of its own file."""
    proto = _with(outside("w1", "model.onnx", offset="0"))
    proto.doc_string = "." * _LENGTH
    return save(folder, proto)


def _twice(folder: Path) -> Path:
    """Returns a model that names a good location first and a bad one behind: libraries differ in which they take."""
    (folder / "weights.bin").write_bytes(weights(WIDTH, HIDDEN).tobytes())
    tensor = outside("w1", "weights.bin")
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    return save(folder, _with(tensor))


def _both(folder: Path) -> Path:
    """Returns a model with values inside and a location outside."""
    tensor = constant("w1", weights(WIDTH, HIDDEN))
    return save(folder, _with(_marked(tensor, {"location": "../outside/secret.bin"})))


def _entries_only(folder: Path) -> Path:
    """Returns a model whose tensor has a location, and says that its values are inside."""
    tensor = constant("w1", weights(WIDTH, HIDDEN))
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    return save(folder, _with(tensor))


def _constant_node(name: str, **attributes: object) -> NodeProto:
    node = NodeProto(op_type="Constant", name=name, output=["w1"])
    for key, value in attributes.items():
        node.attribute.append(helper.make_attribute(key, value))
    return node


def _in_constant(folder: Path) -> Path:
    nodes, held = layers()
    node = _constant_node("constant", value=outside("v", "../outside/secret.bin"))
    return save(folder, model(graph([node, *nodes], held[1:])))


def _decoy(folder: Path) -> Path:
    """Returns a model whose attribute has an honest tensor, and a list of tensors that lead outside."""
    nodes, held = layers()
    node = _constant_node("constant", value=constant("v", weights(WIDTH, HIDDEN)))
    node.attribute[0].tensors.append(outside("v", "../outside/secret.bin"))
    return save(folder, model(graph([node, *nodes], held[1:])))


def _in_branch(folder: Path) -> Path:
    nodes, held = layers()
    value = outside("b", "../outside/secret.bin")
    branches = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["b"], [f"{name}_w"])], name, [], [info(f"{name}_w", None)]
        )
        for name in ("then_branch", "else_branch")
    }
    for branch in branches.values():
        branch.initializer.append(value)
    node = helper.make_node("If", ["yes"], ["w1"], name="choice", **branches)
    return save(folder, model(graph([node, *nodes], [*held[1:], constant("yes", True, bool)])))


def _in_sparse(folder: Path) -> Path:
    nodes, held = layers()
    proto = model(graph(nodes, held[1:]))
    sparse = proto.graph.sparse_initializer.add(dims=[WIDTH, HIDDEN])
    sparse.values.CopyFrom(
        _marked(TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[4]), {"location": "../outside/secret.bin"})
    )
    sparse.indices.CopyFrom(constant("i", [0, 1, 2, 3], "int64"))
    return save(folder, proto)


def _in_function(folder: Path) -> Path:
    nodes, held = layers()
    constant_node = _constant_node("inner", value=outside("v", "../outside/secret.bin"))
    constant_node.output[0] = "out"
    function = helper.make_function("local", "Weight", [], ["out"], [constant_node], [helper.make_opsetid("", OPSET)])
    proto = model(
        graph([helper.make_node("Weight", [], ["w1"], domain="local"), *nodes], held[1:]), functions=[function]
    )
    proto.opset_import.add(domain="local", version=1)
    return save(folder, proto)


def _in_training(folder: Path) -> Path:
    """Returns a model whose training part, which no tool of inference reads, leads outside."""
    proto = honest()
    proto.training_info.add().initialization.initializer.append(outside("t", "../outside/secret.bin"))
    return save(folder, proto)


def _cached(target: str) -> Callable[[Path], Path]:
    """Returns what writes the layout of a Hugging Face cache, in which the data file is a link to ``target``."""

    def make(folder: Path) -> Path:
        blobs, snapshot = folder / "models--a--b" / "blobs", folder / "models--a--b" / "snapshots" / "0123"
        for place in (blobs, snapshot, folder / "models--c--d" / "blobs"):
            place.mkdir(parents=True)
        for place in (blobs, folder / "models--c--d" / "blobs"):
            (place / "f00d").write_bytes(weights(WIDTH, HIDDEN).tobytes())
        save(blobs, _with(outside("w1", "model.onnx.data")), "beef")
        (snapshot / "model.onnx").symlink_to("../../blobs/beef")
        (snapshot / "model.onnx.data").symlink_to(target)
        return snapshot / "model.onnx"

    return make


def _whole_cache_elsewhere(folder: Path) -> Path:
    """Returns a model in a folder that is called snapshots, whose blobs are a link to elsewhere."""
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "blobs").symlink_to("../outside")
    (snapshot / "w").symlink_to("../../blobs/secret.bin")
    return save(snapshot, _with(outside("w1", "w")))


def _shorten(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"abcd")


def _a_folder(folder: Path) -> None:
    (folder / "a").mkdir()


CASES = [
    Case(name=f"external/{name}", kind="model", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("parent", _OUT, _located("../outside/secret.bin"), "`../outside/secret.bin`"),
        ("absolute", _OUT, _absolute, ""),
        ("down-and-up", _OUT, _located("a/../../outside/secret.bin", _a_folder), "`a/../../outside/secret.bin`"),
        ("dot-slash-up", _OUT, _located("./../outside/secret.bin"), ""),
        ("symlink", _OUT, _located("link.bin", _link("link.bin", "../outside/secret.bin")), ""),
        ("symlink-chain", _OUT, _located("first", _chain), ""),
        ("symlink-circle", _BROKEN, _located("round", _link("round", "round")), ""),
        ("symlink-folder", _OUT, _located("d/secret.bin", _link("d", "../outside")), ""),
        ("symlink-device", _OUT, _located("zero", _link("zero", "/dev/zero")), ""),
        ("symlink-process", _OUT, _located("self", _link("self", "/proc/self/environ")), ""),
        ("hard-link", _OUT, _located("hard.bin", _hard), ""),
        ("fifo", _OUT, _located("pipe", lambda folder: os.mkfifo(folder / "pipe")), "opening it would wait forever"),
        ("device", _OUT, _located("/dev/zero"), ""),
        ("directory", _OUT, _located("a", _a_folder), ""),
        ("dot", _OUT, _located("."), "the folder itself"),
        ("empty", _OUT, _located(""), "no location"),
        ("absent", _OUT, _located(None), "no key `location`"),
        ("nul", _OUT, _located("weights.bin\x00/../../outside/secret.bin"), ""),
        ("backslashes", _OUT, _located("..\\outside\\secret.bin"), ""),
        ("drive", _BROKEN, _located("C:/Windows/win.ini"), ""),
        ("url", _BROKEN, _located("file:///etc/hostname"), ""),
        ("home", _BROKEN, _located("~/secret.bin"), ""),
        ("percent", _BROKEN, _located("%2e%2e/outside/secret.bin"), ""),
        ("long-location", _BROKEN, _located("a/" * 50_000 + "b"), "100 kB"),
        ("missing", frozenset({REFUSED}), _located("nowhere.bin"), ""),
        ("offset-negative", _BROKEN, _located("weights.bin", offset="-4"), ""),
        ("offset-beyond", _BROKEN, _located("weights.bin", offset="1000000"), ""),
        ("offset-word", _BROKEN, _located("weights.bin", offset="many"), ""),
        ("offset-2-63", _BROKEN, _located("weights.bin", offset=str(2**63)), ""),
        ("offset-digits", _BROKEN, _located("weights.bin", offset="9" * 5000), "5,000 digits"),
        ("length-beyond", _BROKEN, _located("weights.bin", length=str(2**40)), ""),
        ("length-short", _BROKEN, _located("weights.bin", length="8"), "less than the shape needs"),
        ("length-negative", _BROKEN, _located("weights.bin", length="-1"), ""),
        ("length-zero", _BROKEN, _located("weights.bin", offset="1000000", length="0"), ""),
        ("file-short", _BROKEN, _located("weights.bin", _shorten), ""),
        ("attribute-injection", INERT | _BROKEN, _located("weights.bin", __class__="x", basepath="../outside", dims="9",
                                                     raw_data="x", data_type="8", name="../x"), "unknown keys"),
        ("location-twice", _OUT, _twice, "the second leads outside"),
        ("inside-and-outside", _OUT, _both, "values in the file and a location"),
        ("location-unused", INERT | _OUT, _entries_only, "a location, but not marked as external"),
        ("itself", INERT | _BROKEN, _itself, "the data file is the model"),
        ("in-constant", _OUT, _in_constant, ""),
        ("in-attribute-list", _BROKEN, _decoy, "behind an honest tensor in one attribute"),
        ("in-branch", _OUT, _in_branch, "an initializer of an If's branches"),
        ("in-sparse", _OUT, _in_sparse, ""),
        ("in-function", _OUT, _in_function, ""),
        ("in-training", INERT | _OUT, _in_training, "`training_info`"),
        ("cache", INERT, _cached("../../blobs/f00d"), "the links of a Hugging Face cache: no attack, must work"),
        ("cache-of-others", _OUT, _cached("../../../models--c--d/blobs/f00d"), "a link into another cache"),
        ("cache-elsewhere", _OUT, _whole_cache_elsewhere, "a cache whose `blobs` is a link"),
    ]
]  # fmt: skip
