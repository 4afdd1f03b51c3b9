#!/usr/bin/env bash
# What the tests would not notice: a seeded sample of small changes of the code (cosmic-ray), each
# against the tests nearest to it, in a copy of the last commit. Not in CI: a change that no test
# notices takes all of them, minutes.
#   bash scripts/mutation.sh                # 40 mutants, seed 0
#   SEED=1 COUNT=100 bash scripts/mutation.sh apd/tables trainers/coop.py
set -euo pipefail
EXTRAS="[test,mutation]" source "$(dirname "$0")/env.sh"
committed
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git archive HEAD | tar -x -C "$copy"
cd "$copy"
PYTHONPATH="$copy" OMP_NUM_THREADS=1 python scripts/mutation.py "${SEED:-0}" "${COUNT:-40}" "$@"
