"""Training, import and export of models to ONNX model folders. The only package that imports torch."""
