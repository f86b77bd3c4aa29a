from fewbits.planning.site import GraphView, OpView, TensorView


def graph() -> GraphView:
    ops = (
        OpView(name="a", op="Conv", domain="", inputs=("x", "w", ""), outputs=("y",)),
        OpView(name="b", op="Add", domain="", inputs=("y", "y"), outputs=("z",)),
        OpView(name="c", op="Split", domain="com.x", inputs=("y",), outputs=("p", "")),
    )
    tensors = {
        "x": TensorView(name="x", shape=(None, 3), dtype="float32"),
        "w": TensorView(name="w", shape=(2, 3), dtype="float32", constant=True),
        "y": TensorView(name="y", shape=None, dtype=None),
    }
    return GraphView(ops=ops, tensors=tensors, inputs=("x",), outputs=("z",), opset=18)


def test_producers_and_consumers_are_found_and_left_out_inputs_are_nobody():
    view = graph()
    assert view.producer["y"].name == "a"
    assert "" not in view.producer
    assert "" not in view.consumers
    assert [op.name for op in view.consumers["y"]] == ["b", "c"], "a node that reads twice is one reader"
    assert "z" not in view.consumers


def test_what_is_not_known_is_not_guessed():
    view = graph()
    assert view.is_constant("w")
    assert not view.is_constant("x")
    assert not view.is_constant("nowhere")
    assert view.rank("x") == 2
    assert view.rank("y") is None
    assert view.rank("nowhere") is None
    assert view.tensors["x"].elements == 3
    assert view.by_name["c"].label == "com.x::Split"
