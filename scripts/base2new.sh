#!/usr/bin/env bash
# Base-to-new: train on the first half of the classes, test on both halves.
#   bash scripts/base2new.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/base2new.sh /data caltech101 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG and OUTPUT.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

FOLDERS=
for METHOD in $METHODS; do
    for SEED in $SEEDS; do
        RUN=$DATASET/shots_$SHOTS/$METHOD/$CFG/seed$SEED
        BASE=$OUTPUT/base2new/train_base/$RUN
        NEW=$OUTPUT/base2new/test_new/$RUN
        run "$METHOD" "$DATASET" "$SHOTS" "$SEED" "$BASE" \
            $(epochs "$METHOD" "$SHOTS") DATASET.SUBSAMPLE_CLASSES base
        run "$METHOD" "$DATASET" "$SHOTS" "$SEED" "$NEW" \
            --eval-only --model-dir "$BASE" \
            $(epochs "$METHOD" "$SHOTS") DATASET.SUBSAMPLE_CLASSES new
        FOLDERS="$FOLDERS $BASE $NEW"
    done
done
apd-table $FOLDERS --protocol base-to-new
