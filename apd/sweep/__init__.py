"""Sweeps: the runs of a grid, in parallel; a killed sweep is continued by the same command."""
