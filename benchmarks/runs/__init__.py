"""Run folders: their record, observations, latencies, and the verdict on them."""
