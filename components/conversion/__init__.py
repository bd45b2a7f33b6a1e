"""Turning a model into a `.tflite` or ONNX file, and checking that the file is what was promised."""
