"""The arithmetic of quantization: formats, granularities, schemes, scales, and the value that a quantized tensor is."""
