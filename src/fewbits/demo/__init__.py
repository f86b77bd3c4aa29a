"""The data of ``fewbits demo``: digits.onnx, a small trained CNN, and digits.npz, images that it has never seen."""
