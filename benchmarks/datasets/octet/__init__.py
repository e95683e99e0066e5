"""Octet: a small, real, eight-domain test bed in UnED's layout, built from package registries."""

from benchmarks.datasets.octet.build import build_octet

__all__ = ["build_octet"]
