#!/usr/bin/env bash
# Base-to-new: train on the first half of the classes, test on both halves.
#   bash scripts/base2new.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/base2new.sh /data caltech101 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show base-to-new
exit "$STATUS"
