"""Verifying, timing and listing model folders."""
