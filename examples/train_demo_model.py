"""Trains the model of ``fewbits demo`` and writes it, with its data, as ONNX and NPZ.

    pip install torch==2.13.0 scikit-learn onnx onnxruntime
    python examples/train_demo_model.py               # rewrites src/fewbits/demo/digits.onnx and digits.npz
    python examples/train_demo_model.py --validate    # three times: trains on four forms, judges on two; writes nothing

A small CNN with what makes quantization hard: BatchNormalization (kept as nodes of its own), depthwise convolutions,
residual additions, ReLU6. Design decisions were taken with ``--validate``, which never opens the held-out images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).resolve().parent.parent / "src" / "fewbits" / "demo"
SEED = 0
EPOCHS = 40
BATCH = 32
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 2e-3
LABEL_SMOOTHING = 0.1
BN_EPSILON = 1e-5

# Every writer copied the same form, so the labels repeat and show where a form begins; a form is one person's hand.
# 14 forms were filled by the 13 writers of optdigits.tes. Training has the first six; the other eight are held out.
FORM_HEAD = list(range(10)) * 3
FORMS = (0, 130, 256, 386, 516, 646, 776)
HELD_OUT_START = FORMS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution with its BatchNorm: what follows it, and whose output is added to it.

    ``add`` names an earlier layer; the sum comes after the BatchNorm and before the ReLU6.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True
    add: str = ""


LAYERS = (
    Layer(name="stem", inputs=1, outputs=32, kernel=3),
    Layer(name="down1_dw", inputs=32, outputs=32, kernel=3, stride=2, depthwise=True),
    Layer(name="down1_pw", inputs=32, outputs=64, kernel=1),
    Layer(name="res_a", inputs=64, outputs=64, kernel=3),
    Layer(name="res_b", inputs=64, outputs=64, kernel=3, add="down1_pw"),
    Layer(name="sep_dw", inputs=64, outputs=64, kernel=3, depthwise=True),
    Layer(name="sep_pw", inputs=64, outputs=64, kernel=1, relu6=False, add="res_b"),
    Layer(name="down2", inputs=64, outputs=64, kernel=3, stride=2),
)
CLASSES = 10


# ---- data ------------------------------------------------------------------------------------------------------------


def upsample(images: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns 8 x 8 counts 0..16 as [n, 1, 32, 32] float32 on the grid k/16 of [0, 1].

    Bilinear by four with pixel centres at (i + 0.5) / 4 - 0.5 and repeated edges. The weights are eighths, so the sums
    are exact in integers (64ths of a level) and the rounding, half up, to whole levels is the same on every machine.
    """
    position = (2 * np.arange(32) + 1) - 4  # in eighths of an 8 x 8 pixel
    low, weight = position // 8, position % 8
    matrix = np.zeros((32, 8), dtype=np.int64)
    np.add.at(matrix, (np.arange(32), np.clip(low, 0, 7)), 8 - weight)
    np.add.at(matrix, (np.arange(32), np.clip(low + 1, 0, 7)), weight)
    levels = (matrix @ images.astype(np.int64) @ matrix.T + 32) // 64
    return (levels[:, None] / 16).astype(np.float32)


def load() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns all 1797 images [1797, 1, 32, 32] and labels [1797] in the order of the file, its forms checked."""
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    for start in FORMS:
        if labels[start : start + len(FORM_HEAD)].tolist() != FORM_HEAD:
            raise SystemExit(f"image {start} does not begin a form: these are not scikit-learn's digits as known here")
    return upsample(digits.images), labels


def augment(images: Tensor) -> Tensor:
    """Returns the images, each rotated, sheared, stretched, shifted and re-inked at random, back on the grid k/16."""
    n = len(images)
    spread = torch.tensor([0.15, 0.15, 0.1, 0.1, 0.06, 0.06])  # radians, shear, log stretch (2), half-widths (2)
    angle, shear, wide, high, right, down = ((2 * torch.rand(n, 6) - 1) * spread).unbind(1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    stretch = torch.stack([wide.exp(), shear, torch.zeros(n), high.exp()], 1).view(n, 2, 2)
    matrix = torch.cat([rotation @ stretch, torch.stack([right, down], 1)[:, :, None]], 2)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    ink = 0.8 + 0.4 * torch.rand(n, 1, 1, 1)
    moved = functional.grid_sample(images, grid, align_corners=False) * ink
    return (moved.clamp(0, 1) * 16).round() / 16


# ---- network and training --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """LAYERS, global average pool, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleDict()
        self.bn = nn.ModuleDict()
        for layer in LAYERS:
            groups = layer.inputs if layer.depthwise else 1
            self.conv[layer.name] = nn.Conv2d(
                layer.inputs,
                layer.outputs,
                layer.kernel,
                stride=layer.stride,
                padding=layer.kernel // 2,
                groups=groups,
                bias=False,
            )
            self.bn[layer.name] = nn.BatchNorm2d(layer.outputs, eps=BN_EPSILON)
            nn.init.kaiming_normal_(self.conv[layer.name].weight, mode="fan_out" if groups == 1 else "fan_in")
        self.head = nn.Linear(LAYERS[-1].outputs, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [n, 10] of images [n, 1, 32, 32]."""
        kept = {}
        x = image
        for layer in LAYERS:
            x = self.bn[layer.name](self.conv[layer.name](x))
            if layer.add:
                x = x + kept[layer.add]
            if layer.relu6:
                x = functional.relu6(x)
            kept[layer.name] = x
        return self.head(x.mean((2, 3)))


def train(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Net:
    """Returns the network after EPOCHS passes of SGD with one cycle of the learning rate, in eval mode."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    net = Net()
    # No decay of vectors: it would shrink the BatchNorm scales until no activation ever met the 6 of ReLU6.
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(EPOCHS):
        total = 0.0
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for rows in order.split(BATCH):
            loss = functional.cross_entropy(net(augment(x[rows])), y[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * BATCH
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1:3d}  training loss {total / len(order):.4f}", flush=True)
    return net.eval()


def predict(net: Net, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the logits [n, 10] that torch computes."""
    with torch.inference_mode():
        return torch.cat([net(part) for part in torch.from_numpy(images).split(64)]).numpy()


# ---- export ----------------------------------------------------------------------------------------------------------


def build_onnx(net: Net) -> onnx.ModelProto:
    """Returns the network as ONNX: node by node from LAYERS, because torch's exporter folds BatchNorm away."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    nodes = []
    tensors = {"zero": np.float32(0), "six": np.float32(6)}

    def node(op: str, name: str, inputs: list[str], output: str, **attributes: int | float | list[int]) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    x = "image"
    for layer in LAYERS:
        name, pad = layer.name, layer.kernel // 2
        tensors[f"{name}.weight"] = state[f"conv.{name}.weight"]
        x = node(
            "Conv",
            f"{name}/conv",
            [x, f"{name}.weight"],
            f"{name}.conv",
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[pad] * 4,
            group=layer.inputs if layer.depthwise else 1,
        )
        keys = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        tensors |= {f"{name}.bn_{key}": state[f"bn.{name}.{value}"] for key, value in keys.items()}
        steps = ["bn", *(["add"] if layer.add else []), *(["relu6"] if layer.relu6 else [])]
        outputs = {step: name if step == steps[-1] else f"{name}.{step}" for step in steps}
        statistics = [f"{name}.bn_{key}" for key in keys]
        x = node("BatchNormalization", f"{name}/bn", [x, *statistics], outputs["bn"], epsilon=BN_EPSILON)
        if layer.add:
            x = node("Add", f"{name}/add", [x, layer.add], outputs["add"])
        if layer.relu6:
            x = node("Clip", f"{name}/relu6", [x, "zero", "six"], outputs["relu6"])
    x = node("GlobalAveragePool", "pool", [x], "pooled")
    x = node("Flatten", "flatten", [x], "features", axis=1)
    tensors["head.weight"], tensors["head.bias"] = state["head.weight"], state["head.bias"]
    node("Gemm", "head", [x, "head.weight", "head.bias"], "logits", transB=1)

    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
        doc_string="Handwritten digits, 32 x 32 grey levels in [0, 1] (ink is 1), to logits of the classes 0..9.",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "fewbits"
    model.producer_version = "1"
    model.domain = "fewbits.demo"
    model.model_version = 1
    model.doc_string = "The model of `fewbits demo`; trained by examples/train_demo_model.py, see README.md beside it."
    facts = {
        "license": "Apache-2.0",
        "data": "Alpaydin, E. and Kaynak, C. (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C50P49; test part, as in scikit-learn's load_digits",
        "data_license": "CC-BY-4.0",
        "seed": str(SEED),
    }
    helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the logits [n, 10] that onnxruntime computes on the CPU."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"image": images[i : i + 64]})[0] for i in range(0, len(images), 64)]
    return np.concatenate(parts)


# ---- main ------------------------------------------------------------------------------------------------------------


def validate(images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Prints the errors of three networks, each judged on the two training forms that it has not seen."""
    wrong = []
    for start, stop in zip(FORMS[0:-2:2], FORMS[2::2], strict=True):
        inside = np.zeros(HELD_OUT_START, dtype=bool)
        inside[start:stop] = True
        seen, unseen = np.flatnonzero(~inside), np.flatnonzero(inside)
        logits = predict(train(images[seen], labels[seen]), images[unseen])
        wrong.append(int((logits.argmax(1) != labels[unseen]).sum()))
    print(f"wrong in the forms left out: {wrong}, {sum(wrong)} of {HELD_OUT_START}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model of `fewbits demo`.")
    parser.add_argument("--validate", action="store_true", help="train and judge inside the training forms only")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the weights may depend on it")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of digits.onnx and digits.npz")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, labels = load()
    if options.validate:
        validate(images[:HELD_OUT_START], labels[:HELD_OUT_START])
        return
    net = train(images[:HELD_OUT_START], labels[:HELD_OUT_START])
    model = build_onnx(net)
    held_out, answers = images[HELD_OUT_START:], labels[HELD_OUT_START:]
    ours, theirs = run_onnx(model, held_out), predict(net, held_out)
    worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if worst > 1e-5:
        raise SystemExit(f"onnxruntime and torch differ by {worst:.1e} of the largest logit")
    right = int((ours.argmax(1) == answers).sum())
    print(f"{right}/{len(ours)} = {right / len(ours):.2%} right; onnxruntime and torch differ by {worst:.1e}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "digits.onnx").write_bytes(model.SerializeToString(deterministic=True))
    np.savez_compressed(options.out / "digits.npz", image=held_out, labels=answers)
    for name in ("digits.onnx", "digits.npz"):
        print(f"{name}  {(options.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
