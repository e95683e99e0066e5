"""The service: images in over HTTP, 64-d embeddings and cross-domain hits out."""

import os

__version__ = "0.1.0"

# ONNX Runtime would report on its use to its maker, and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
