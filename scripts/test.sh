#!/usr/bin/env bash
# Install what the tests need, look at style and types, and run the tests in two processes.
# Arguments go to pytest. EXTRAS="[test,ray,slurm]" brings the engines of sweeps, whose tests are
# skipped without them.
set -euo pipefail
EXTRAS="${EXTRAS:-[test]}" source "$(dirname "$0")/env.sh"
python -m ruff check --quiet
python -m ruff format --check --quiet
python -m mypy
python -m pytest -n 2 "$@"
