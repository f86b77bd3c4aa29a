"""A plan is a text file: write it, change it, replay it to the same bytes.

    python examples/edit_and_replay_plan.py

Writes plan.json and edited.json into the working directory. docs/plan.md explains every key.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import fewbits

demo = Path(str(files("fewbits"))) / "demo"
model, data = demo / "digits.onnx", demo / "digits.npz"

first = fewbits.quantize(model, data=data, scheme="w8a8")
Path("plan.json").write_text(first.plan.to_json(), encoding="utf-8")
print(f"plan.json: {len(first.plan.quantized)} quantized tensors, file of {len(first.model_bytes)} bytes")

# The first layer stays float: a node does when its weight and its bias do.
edited = json.loads(Path("plan.json").read_text(encoding="utf-8"))
for site in edited["sites"]:
    if site["node"] == "stem/conv" and site["role"] in ("weight", "bias"):
        site["scheme"] = "float"
        site["reason"] = "kept float by hand"
Path("edited.json").write_text(json.dumps(edited, indent=1), encoding="utf-8")

second = fewbits.quantize(model, data=data, plan="edited.json")
executed = second.report.executed
print(f"edited.json: nodes in float: {executed.float_nodes}, file of {len(second.model_bytes)} bytes")
for island in executed.islands or ():
    print(f"  {island.node} ({island.op}): {island.why}")

again = fewbits.quantize(model, data=data, plan="edited.json")
print("the same plan gives the same bytes:", again.model_bytes == second.model_bytes)
