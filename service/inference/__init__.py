"""Images to embeddings: decode, queue, batch, infer, cache."""
