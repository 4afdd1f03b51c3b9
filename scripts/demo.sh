#!/usr/bin/env bash
# Train and evaluate every method on the embedded default (mini CLIP, handwritten digits, 16 shots)
# and print one table. In the end it prints the line that adds AutoAttack on ATTACKED test images,
# the same for all, to it.
#   bash scripts/demo.sh [DATA] [DATASET] [SHOTS] [SEEDS]
# See scripts/protocol.sh for METHODS, OUTPUT and others. One run a processor, with one thread each:
# more threads do not pay on a CLIP this small.
set -euo pipefail
SPEC=configs/sweeps/demo.yaml
FLAGS=${FLAGS:---jobs $(getconf _NPROCESSORS_ONLN) --threads 1}
source "$(dirname "$0")/protocol.sh"

run
if [ "${ATTACKED:-0}" -gt 0 ]; then
    apd-eval "${RUNS[@]}" --attack autoattack --subset "$ATTACKED" --shards 2 $FLAGS > /dev/null
    show methods
else
    show methods
    echo
    echo "The same with AutoAttack on 100 test images, which takes longer than all this:"
    printf '    ATTACKED=100 bash scripts/demo.sh'
    [ $# -eq 0 ] || printf ' %q' "$@"
    echo
fi
exit "$STATUS"
