"""The service: images in over HTTP, 64-d embeddings and cross-domain hits out."""

__version__ = "0.1.0"
