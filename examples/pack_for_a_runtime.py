"""A weight, quantized and laid out as a runtime reads it: the tensors, the way back, and a run in ONNX Runtime.

    python examples/pack_for_a_runtime.py

Writes gptq.safetensors into the working directory.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from safetensors.numpy import save_file

import fewbits
from fewbits.numerics.packing import LAYOUTS

weight = np.random.default_rng(0).standard_normal((64, 300)).astype(np.float32)  # [out, in]

# One layout a reader. `pack` gives the tensors as they lie on disk; `unpack` gives back every bit.
q = fewbits.quantize_array(weight, "uint4-g32-asym")
layout = LAYOUTS["ort-matmulnbits"]
packed = layout.pack(q)
for name, tensor in packed.items():
    print(f"{name}: {tensor.dtype} {list(tensor.shape)}")
print("back to the bit:", layout.unpack(packed, q.scheme, q.shape).same(q))

# ONNX Runtime computes with these bytes: rows of the identity show the weight that it sees.
node = helper.make_node(
    "MatMulNBits", ["x", *packed], ["y"], domain="com.microsoft", K=300, N=64, bits=4, block_size=32, accuracy_level=1
)
graph = helper.make_graph(
    [node],
    "one_layer",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 300])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
    [onnx.numpy_helper.from_array(tensor, name) for name, tensor in packed.items()],
)
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
(seen,) = session.run(None, {"x": np.eye(300, dtype=np.float32)})
print("ONNX Runtime sees our weight:", np.array_equal(seen.T, q.dequantize()))

# What a layout cannot hold it refuses, and names the nearest that it can.
try:
    LAYOUTS["gptq"].pack(q)
except fewbits.FewbitsError as refusal:
    print(refusal)

padded = np.pad(weight, ((0, 0), (0, 20)))  # columns of zeros, so that groups of 32 divide the rows
q = fewbits.quantize_array(padded, "int4-g32-scale-fp16")
packed = LAYOUTS["gptq"].pack(q)
save_file(packed, "gptq.safetensors")
bits = 8 * sum(tensor.nbytes for tensor in packed.values()) / padded.size
print(f"gptq.safetensors: {', '.join(packed)}; {bits:g} bits a weight")
