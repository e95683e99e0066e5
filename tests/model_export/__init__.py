"""Models: trained, exported, verified."""
