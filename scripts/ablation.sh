#!/usr/bin/env bash
# What our choices in APD do, one at a time.
#   bash scripts/ablation.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/ablation.sh /data caltech101 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show ablation
exit "$STATUS"
