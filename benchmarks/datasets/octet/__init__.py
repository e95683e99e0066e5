"""Octet: a small, real, eight-domain test bed in UnED's layout, built from package registries."""

from benchmarks.datasets.octet.build import build_octet
from benchmarks.datasets.octet.card import OctetSummary
from benchmarks.datasets.octet.domain_writer import DomainCounts

__all__ = ["DomainCounts", "OctetSummary", "build_octet"]
