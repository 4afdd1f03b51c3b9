#!/usr/bin/env bash
# Install what the tests need, look at style and types, build the site (scripts/docs.sh), and run the
# tests in two processes. Arguments go to pytest. EXTRAS="[test]" leaves out ONNX, Ray, Slurm's
# submitit, gradio, and what drives a browser and runs a notebook, whose tests are skipped.
set -euo pipefail
EXTRAS="${EXTRAS:-[test,onnx,ray,slurm,demo,browser,notebook]}" source "$(dirname "$0")/env.sh"
python -m ruff check --quiet
python -m ruff format --check --quiet
python -m mypy
bash scripts/docs.sh
python -m pytest -n 2 "$@"
