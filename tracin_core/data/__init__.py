"""Samples, splits, pairs, and the readers that turn files into arrays."""
