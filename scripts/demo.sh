#!/usr/bin/env bash
# Train and evaluate every method on the embedded default (mini CLIP, handwritten digits, 16 shots)
# and print one table; then put AutoAttack on ATTACKED test images, the same for all, into it.
#   bash scripts/demo.sh [DATA] [DATASET] [SHOTS] [SEEDS]
# See scripts/protocol.sh for METHODS, OUTPUT and others; ATTACKED=0 leaves AutoAttack out.
set -euo pipefail
SPEC=configs/sweeps/demo.yaml
source "$(dirname "$0")/protocol.sh"

run
show methods
ATTACKED=${ATTACKED:-100}
if [ "$ATTACKED" -gt 0 ]; then
    apd-eval $RUNS --attack autoattack --subset "$ATTACKED" > /dev/null
    show methods
fi
exit "$STATUS"
