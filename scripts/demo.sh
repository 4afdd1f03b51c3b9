#!/usr/bin/env bash
# Train and evaluate every method on the embedded default (mini CLIP, handwritten digits, 16 shots)
# and print one table. Finished runs are kept; a killed one resumes.
#   bash scripts/demo.sh [OUTPUT=output] [SEED=1]
set -euo pipefail
OUTPUT=${1:-output}
SEED=${2:-1}
set --
source "$(dirname "$0")/protocol.sh"

for METHOD in $METHODS; do
    run "$METHOD" digits 16 "$SEED" "$OUTPUT/digits/$METHOD/mini_16shots/seed$SEED"
done

apd-table "$OUTPUT/digits" --markdown "$OUTPUT/demo.md" --csv "$OUTPUT/demo.csv" \
    --plot "$OUTPUT/demo.png"
