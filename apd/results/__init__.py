"""What a run leaves: results.json, history.csv, and verdicts image by image."""

from apd.results.schema import (
    HISTORY_NAME,
    RESULTS_NAME,
    SCHEMA_VERSION,
    SPLITS,
    environment,
    is_complete,
    read_results,
    write_results,
)
from apd.results.verdicts import EVALUATIONS

__all__ = [
    "EVALUATIONS",
    "HISTORY_NAME",
    "RESULTS_NAME",
    "SCHEMA_VERSION",
    "SPLITS",
    "environment",
    "is_complete",
    "read_results",
    "write_results",
]
