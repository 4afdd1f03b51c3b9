"""results.json of a run, and tables and plots of many."""

from apd.results.schema import (
    EVALUATIONS,
    HISTORY_NAME,
    RESULTS_NAME,
    SCHEMA_VERSION,
    environment,
    is_complete,
    read_results,
    write_results,
)

__all__ = [
    "EVALUATIONS",
    "HISTORY_NAME",
    "RESULTS_NAME",
    "SCHEMA_VERSION",
    "environment",
    "is_complete",
    "read_results",
    "write_results",
]
