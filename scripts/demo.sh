#!/usr/bin/env bash
# Train and evaluate six methods on the embedded default (mini CLIP, handwritten digits, 16 shots);
# the table of results grows row by row. METHODS=all: every method, or name some. IMAGES: how many
# test images, the same for all methods (default: 400; 0: all). ATTACKED=100 adds AutoAttack on 100.
#   bash scripts/demo.sh [DATA] [DATASET] [SHOTS] [SEEDS]
# See scripts/protocol.sh for OUTPUT and others. One run a processor, with one thread each: more
# threads do not pay on a CLIP this small.
set -euo pipefail
SPEC=configs/sweeps/demo.yaml
FLAGS=${FLAGS:---jobs $(getconf _NPROCESSORS_ONLN) --threads 1}
METHODS=${METHODS:-ZeroshotCLIP APD AdvIVLP AdvVPT MaPLe CoOp} # longest first: less idle at the end
[ "$METHODS" != all ] || METHODS=
OPTIONS="AT.TEST.SUBSET ${IMAGES:-400} ${OPTIONS:-}"
source "$(dirname "$0")/protocol.sh"

FLAGS="$FLAGS --rows" run
if [ "${ATTACKED:-0}" -gt 0 ]; then
    apd-eval "${RUNS[@]}" --attack autoattack --subset "$ATTACKED" --shards 2 $FLAGS > /dev/null
    show methods
else
    show methods > /dev/null # the rows stand above
fi
echo
echo "Next: open $OUTPUT/$NAME.html; see attacked images: apd-show ${RUNS[1]:-${RUNS[0]}} -o attacked.png"
echo "All methods, images and AutoAttack: METHODS=all IMAGES=0 ATTACKED=100 bash scripts/demo.sh$([ $# -eq 0 ] ||
    printf ' %q' "$@"); in Python: docs/quickstart.ipynb"
exit "$STATUS"
