"""Is the second model as good as the first? A paired comparison of any two ONNX files with the same inputs.

    python examples/compare_two_models.py

It works for files that other tools wrote, too. Every example counts for the verdict, so give examples on which neither
model was trained, tuned or calibrated. (This script takes all images of the demo, which its second model has partly
seen: good enough to show the call, not to believe the verdict.)
"""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

import fewbits

demo = Path(str(files("fewbits"))) / "demo"
model, data = demo / "digits.onnx", demo / "digits.npz"

with tempfile.TemporaryDirectory() as folder:
    # A second model to compare with; take any file of your own instead.
    second = Path(folder) / "second.onnx"
    second.write_bytes(fewbits.quantize(model, data=data, scheme="w8a8").model_bytes)

    for budget in ("2%", "0.1%"):
        found = fewbits.measure(model, second, data=data, max_drop=budget)
        print(f"budget {budget}: {found.verdict}")
        print(f"  {found.metric}: {found.float_figure:.4f} -> {found.figure:.4f} on {found.bound.n} examples")
        print(f"  loss {100 * found.bound.drop:.2f} points, at most {100 * found.bound.bound:.2f} with 95 % confidence")
        print(f"  {found.bound.harmful} answers became worse, {found.bound.helpful} better")
        if found.examples_needed is not None:
            print(f"  about {found.examples_needed} examples would decide")
