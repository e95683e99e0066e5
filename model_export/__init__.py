"""Trained models to ONNX model folders. The only package that imports torch."""
