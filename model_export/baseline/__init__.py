"""A naive torch server, as a baseline."""
