"""Import of released Flax checkpoints."""
