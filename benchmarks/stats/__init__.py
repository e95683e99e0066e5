"""Confidence intervals and paired tests over arrays; no measure is named here."""
