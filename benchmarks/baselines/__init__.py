"""The service beside other servers, and beside its own parts in one process."""
