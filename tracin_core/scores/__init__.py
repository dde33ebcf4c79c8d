"""Algebra on cached kernels and outputs: numpy, scipy and pandas only."""
