#!/usr/bin/env bash
# Domain shift: train once on DATASET, test on TARGETS: other images of its classes.
#   bash scripts/domain_shift.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/domain_shift.sh /data imagenet 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show transfer
exit "$STATUS"
