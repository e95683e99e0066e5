"""Parts of the service."""
