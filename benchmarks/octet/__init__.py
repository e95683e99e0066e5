"""Octet: a small, real, eight-domain test bed in UnED's layout, built from package registries."""

from benchmarks.octet.build import build_octet
from benchmarks.octet.dataset import DomainCounts
from benchmarks.octet.record import OctetSummary

__all__ = ["DomainCounts", "OctetSummary", "build_octet"]
