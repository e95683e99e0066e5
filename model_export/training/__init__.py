"""One training loop; a strategy is a TOML file (`model_export/strategies`)."""
