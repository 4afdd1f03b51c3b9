#!/usr/bin/env bash
# Train and evaluate every method on the embedded default (mini CLIP, handwritten digits, 16 shots)
# and print one table. Finished runs are kept; a killed one resumes.
#   bash scripts/demo.sh [OUTPUT=output] [SEED=1]
set -euo pipefail
source "$(dirname "$0")/env.sh"

OUTPUT=${1:-output}
SEED=${2:-1}
METHODS="ZeroshotCLIP CoOp MaPLe APT AdvVPT AdvIVLP AdvMaPLe APD"
SHOTS=16

for METHOD in $METHODS; do
    DIR=$OUTPUT/digits/$METHOD/mini_${SHOTS}shots/seed$SEED
    echo "== $METHOD ($DIR/log.txt)"
    # the terminal shows the progress bars, log.txt has the rest
    python train.py \
        --root data \
        --seed "$SEED" \
        --trainer "$METHOD" \
        --dataset-config-file configs/datasets/digits.yaml \
        --config-file "configs/trainers/$METHOD/mini.yaml" \
        --output-dir "$DIR" \
        DATASET.NUM_SHOTS "$SHOTS" > /dev/null
done

apd-table "$OUTPUT/digits" --markdown "$OUTPUT/demo.md" --csv "$OUTPUT/demo.csv" \
    --plot "$OUTPUT/demo.png"
