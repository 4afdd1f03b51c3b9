#!/usr/bin/env bash
# Few-shot: train on SHOTS images a class, test on all classes; one table for each number of shots.
#   bash scripts/fewshot.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/fewshot.sh /data caltech101 "1 2 4 8 16" "1 2 3"
# See scripts/protocol.sh for METHODS, CFG and OUTPUT.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

for K in $SHOTS; do
    for METHOD in $METHODS; do
        for SEED in $SEEDS; do
            run "$METHOD" "$DATASET" "$K" "$SEED" \
                "$OUTPUT/$DATASET/$METHOD/${CFG}_${K}shots/seed$SEED" $(epochs "$METHOD" "$K")
        done
    done
    apd-table $(for METHOD in $METHODS; do echo "$OUTPUT/$DATASET/$METHOD/${CFG}_${K}shots"; done)
done
