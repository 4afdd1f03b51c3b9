# Sourced by the protocols' scripts, which take
#   [DATA] [DATASET] [SHOTS] [SEEDS]
# (several: in quotes) in place of what configs/sweeps/<script>.yaml says. Without arguments, and for
# the data sets that need no download, it is configs/sweeps/digits_<script>.yaml. From the
# environment:
#   METHODS, CFG, TARGETS  trainers, configs in configs/trainers/<trainer>/, data sets to transfer to
#   SPEC                   another sweep
#   OUTPUT                 folder of the runs, tables and figures (default: output)
#   OPTIONS                KEY VALUE pairs for every run
#   FLAGS                  further flags of apd-sweep: "--jobs 4", "--executor ray", ...
# Finished runs are kept, killed ones resume; a failing one does not stop the others.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

NAME=$(basename "$0" .sh)
OUTPUT=${OUTPUT:-output}
case "$#/${2:-}" in
    0/ | */digits | */letters | */rendered_digits) SPEC=${SPEC:-configs/sweeps/digits_$NAME.yaml} ;;
    *) SPEC=${SPEC:-configs/sweeps/$NAME.yaml} ;;
esac
SWEEP=(apd-sweep "$SPEC" --root "${1:-data}" --output "$OUTPUT"
    ${2:+--dataset $2} ${3:+--shots $3} ${4:+--seed $4}
    ${METHODS:+--trainer $METHODS} ${CFG:+--config $CFG} ${TARGETS:+--targets $TARGETS}
    ${OPTIONS:+--set $OPTIONS})

# run: the sweep, into STATUS: 1 if some of its runs have failed (the tables show the others)
STATUS=0
run() {
    "${SWEEP[@]}" ${FLAGS:-} || STATUS=$?
    [ "$STATUS" -le 1 ] || exit "$STATUS"
    local folders folder
    folders=$("${SWEEP[@]}" --folders)
    [ -n "$folders" ] || exit "$STATUS"
    RUNS=()
    while IFS= read -r folder; do RUNS+=("$folder"); done <<< "$folders"
}

# show TABLE: print it, and leave it in $OUTPUT, with the figures and a report
show() {
    local files=$OUTPUT/$NAME
    apd-table "${RUNS[@]}" --table "$1" --markdown "$files.md" --csv "$files.csv" --latex "$files.tex"
    apd-report "${RUNS[@]}" --output "$files.html"
    apd-plot "${RUNS[@]}" --output "$files" || [ $? -eq 2 ]  # 2: these runs suit no figure
}
