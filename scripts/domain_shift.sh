#!/usr/bin/env bash
# Domain shift: train once on DATASET, test on other images of the same classes.
#   bash scripts/domain_shift.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/domain_shift.sh /data imagenet 16 "1 2 3"
# TARGETS in the environment: the data sets to test on. See scripts/protocol.sh for METHODS, CFG
# and OUTPUT.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"
source "$(dirname "$0")/transfer.sh"

case $DATASET in
    digits) TARGETS=${TARGETS:-rendered_digits} ;;
    *) TARGETS=${TARGETS:-imagenetv2 imagenet_sketch imagenet_a imagenet_r} ;;
esac
transfer $TARGETS
