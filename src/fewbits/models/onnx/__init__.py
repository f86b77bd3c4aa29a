"""ONNX models: opened with onnx-ir, brought into a canonical form by checked passes, seen by targets as a GraphView."""
