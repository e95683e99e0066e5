"""Export of trained networks to model folders: ONNX, manifest, reference embeddings, variants."""
