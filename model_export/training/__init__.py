"""Training by a strategy, a TOML file such as those in `model_export/strategies`."""
