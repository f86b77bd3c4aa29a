"""From a float model and a budget to a smaller, faster file with its evidence.

    python examples/quickstart.py

Writes the folder fewbits-quickstart into the working directory.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime

import fewbits

# The model that `fewbits demo` uses. For one of your own: the path of an ONNX file, and of an .npz with its examples.
demo = Path(str(files("fewbits"))) / "demo"
model, data = demo / "digits.onnx", demo / "digits.npz"

result = fewbits.quantize(model, data=data, max_drop="2%", effort="fast")
print(result)

print()
print("verdict:", result.verdict)
metric, size, latency = result.report.metric, result.report.size, result.report.latency
print(f"loss at most {100 * (metric.bound or 0):.2f} points on {metric.examples} examples it was not tuned on")
print(f"{size.ratio:.2f} times smaller, {latency.speedup:.2f} times faster")

folder = result.save("fewbits-quickstart", overwrite=True)
print("saved:", ", ".join(sorted(file.name for file in folder.iterdir())))

# The file is plain ONNX: any ONNX Runtime loads it, without fewbits.
session = onnxruntime.InferenceSession(folder / "model.onnx")
with np.load(data) as examples:
    image, label = examples["image"][:1], examples["labels"][0]
(logits,) = session.run(None, {"image": image})
print(f"the first image shows a {label}, the quantized model reads a {logits.argmax()}")
