#!/usr/bin/env bash
# Few-shot: train on SHOTS images per class, test on all classes.
#   bash scripts/fewshot.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/fewshot.sh /data caltech101 "1 2 4 8 16" "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show few-shot
exit "$STATUS"
