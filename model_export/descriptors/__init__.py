"""Descriptors of a data set's images and their scores."""
