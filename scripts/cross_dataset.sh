#!/usr/bin/env bash
# Cross-dataset: train once on DATASET, test on TARGETS, which have other classes.
#   bash scripts/cross_dataset.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/cross_dataset.sh /data imagenet 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show transfer
exit "$STATUS"
