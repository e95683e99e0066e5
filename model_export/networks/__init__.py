"""Backbones, heads and the graph around them."""
