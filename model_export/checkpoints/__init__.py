"""Released Flax checkpoints, read into torch."""
