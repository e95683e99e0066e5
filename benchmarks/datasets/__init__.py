"""Data sets in UnED's layout: read, checked, built and subsampled."""
