#!/usr/bin/env bash
# Test-time defences beside APD, docs/test_time.md: runs, attacks, table and figure in docs/test_time.
#   bash scripts/test_time.sh DATA    # the photographs, laid out by scripts/mini_clip/photos.py
# OUTPUT (default: output/test_time) has the runs, FLAGS goes to apd-eval ("--shards 2"). Finished
# runs and attacks are kept, those in docs/test_time/runs.tar.gz too, and killed ones go on. PARTS
# chooses among: search confirm check tables (default: all), SETS among the confirmation sets, so
# that two machines can share them ("cifar10 dtd10"). Runs are made from a clone as it is committed;
# DIRTY=1 lets its files differ.
set -euo pipefail
shopt -s inherit_errexit  # what fails in $(...) ends this
[ $# -eq 1 ] || { sed -n '2,8s/^# //p' "$0" >&2; exit 2; }
DATA=$(realpath "$1")
source "$(dirname "$0")/env.sh"

OUTPUT=${OUTPUT:-output/test_time}
TABLES=docs/test_time
choose_parts "search confirm check tables"
[ "$PARTS" = tables ] || committed
mkdir -p "$OUTPUT"
tar -xzf "$TABLES/runs.tar.gz" -C "$OUTPUT" --skip-old-files

DEVELOPMENT="clothing scene15 trashnet pacs_cartoon"
CONFIRMATION="cifar10 caltech101 dtd10 flowers5"
TAUS="0.01 0.02 0.03 0.05 0.2"  # of TTC; 0.2 is published
# the same for all rows: 100 images, eps 2/255, means over 4 draws, verdicts by 3
THREAT=(AT.TEST.EPS 2.0 AT.TEST.ALPHA 0.5 AT.TEST.SUBSET 100)
THREAT+=(AT.TEST.EOT 4 AT.TEST.DRAWS 3 AT.TEST.RULE majority AT.TEST.ATTACKS clean)
PGD=pgd-20 SQUARE=square-100
# the gradient of one AdamW step is 0 (docs/test_time.md): not to compute it costs less
CONSTANT=(TRAINER.RTPT.BACKWARD surrogate TRAINER.TAPT.BACKWARD surrogate)

# run SET ROW TRAINER [RUN BELOW] [-- KEY VALUE...]: a run with its clean accuracy, once
run() {
    local set=$1 row=$2 trainer=$3 below=() classes=()
    shift 3
    if [ $# -gt 0 ] && [ "$1" != -- ]; then
        below=(--eval-only --model-dir "$OUTPUT/$set/$1")
        shift
    fi
    [ $# -eq 0 ] || shift
    [ "$set" != caltech101 ] || classes=(DATASET.CLASSES 1/8/0) # about ten, as the other sets have
    local out="$OUTPUT/$set/$row"
    [ ! -f "$out/results.json" ] || return 0
    apd-train --root "$DATA" --seed 1 --trainer "$trainer" --output-dir "$out" "${below[@]}" \
        --config-file "configs/trainers/$trainer/mini_photo.yaml" \
        --dataset-config-file "configs/datasets/photos_$set.yaml" \
        DATASET.NUM_SHOTS 16 "${classes[@]}" "${THREAT[@]}" "$@"
}
# attack SET ROW ATTACKS SOURCE [options of apd-eval]
attack() { apd-eval "$OUTPUT/$1/$2" --attack "$3" --source "$4" "${@:5}" ${FLAGS:-}; }
tau() { python scripts/test_time.py --chosen "$OUTPUT" $DEVELOPMENT; }

if part search; then
    for set in $DEVELOPMENT; do
        for value in $TAUS; do
            run "$set" "TTC-$value" TTC -- TRAINER.TTC.TAU "$value"
            attack "$set" "TTC-$value" $PGD adaptive
        done
    done
fi
if part confirm; then
    chosen=$(tau)
    for set in ${SETS:-$CONFIRMATION}; do
        run "$set" ZeroshotCLIP ZeroshotCLIP
        run "$set" AdvIVLP AdvIVLP
        run "$set" APD APD
        for row in ZeroshotCLIP AdvIVLP APD; do
            attack "$set" $row "$PGD,autoattack-10,$SQUARE" white-box
        done
        run "$set" TTC TTC -- TRAINER.TTC.TAU "$chosen"
        run "$set" TTC-published TTC
        run "$set" TTC-APD TTC APD -- TRAINER.TTC.TAU "$chosen"
        run "$set" RTPT RTPT -- "${CONSTANT[@]}"
        run "$set" RTPT-APD RTPT APD -- "${CONSTANT[@]}"
        run "$set" TAPT-AdvIVLP TAPT AdvIVLP -- "${CONSTANT[@]}"
        run "$set" TAPT-APD TAPT APD -- "${CONSTANT[@]}"
        for row in TTC TTC-published TTC-APD RTPT RTPT-APD TAPT-AdvIVLP TAPT-APD; do
            attack "$set" $row $PGD static
            attack "$set" $row "$PGD,autoattack-rand-10,$SQUARE" adaptive
        done
    done
fi
if part check; then  # that the attack can take every image, and that more of it finds no more
    set=${CONFIRMATION%% *}
    for row in TTC TTC-APD RTPT RTPT-APD TAPT-AdvIVLP TAPT-APD; do
        attack "$set" $row pgd-40 adaptive --eps 2,128
    done
    last=(AT.TEST.ATTACKS $PGD AT.TEST.LAST_ITERATE True)  # judged as static attacks are
    run "$set" TTC-last TTC -- TRAINER.TTC.TAU "$(tau)" "${last[@]}"
    run "$set" RTPT-last RTPT -- "${CONSTANT[@]}" "${last[@]}"
    run "$set" TAPT-AdvIVLP-last TAPT AdvIVLP -- "${CONSTANT[@]}" "${last[@]}"
    # R-TPT is ahead of APD there: five times the steps, four times the draws, on 20 images
    run flowers5 RTPT-20 RTPT -- "${CONSTANT[@]}" AT.TEST.SUBSET 20
    attack flowers5 RTPT-20 $PGD adaptive
    attack flowers5 RTPT-20 pgd-100 adaptive --eot 16
fi
if part tables; then
    mkdir -p "$TABLES"
    python scripts/test_time.py "$OUTPUT" $CONFIRMATION --output "$TABLES"
fi
