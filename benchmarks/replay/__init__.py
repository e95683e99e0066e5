"""The query sets through the live service, and the results of a run."""
