"""Runs of a second as jobs."""

from sample_sweeps import serial, write_spec  # noqa: F401  fixtures
