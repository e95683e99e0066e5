"""Servers under test: our service, its process, and others that embed images."""
