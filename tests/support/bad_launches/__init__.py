"""Kernels that are wrong on purpose, for the compile report to find."""
