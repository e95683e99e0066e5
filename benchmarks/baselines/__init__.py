"""Comparison of the service with other servers, and with its own parts in one process."""
