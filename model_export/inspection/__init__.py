"""Model folders verified, timed and listed."""
