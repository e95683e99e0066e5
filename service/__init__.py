"""The service: computes 64-d embeddings of images, and searches across domains, over HTTP."""

import os

__version__ = "0.1.0"

# Disables telemetry of ONNX Runtime, which reads the variable when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
