"""Trained networks to model folders: ONNX, manifest, canonical vectors, variants."""
