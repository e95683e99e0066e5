"""Servers of the service's model in other frameworks, which `benchmarks efficiency --peers` measures."""
