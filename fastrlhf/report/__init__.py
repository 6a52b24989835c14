"""Plots and pages drawn from the metrics of a run."""
