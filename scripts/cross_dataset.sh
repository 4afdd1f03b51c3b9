#!/usr/bin/env bash
# Cross-dataset: train once on DATASET, test on other data sets with other classes.
#   bash scripts/cross_dataset.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/cross_dataset.sh /data imagenet 16 "1 2 3"
# TARGETS in the environment: the data sets to test on. See scripts/protocol.sh for METHODS, CFG
# and OUTPUT.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"
source "$(dirname "$0")/transfer.sh"

case $DATASET in
    digits) TARGETS=${TARGETS:-letters} ;;
    *) TARGETS=${TARGETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft
        sun397 dtd eurosat ucf101} ;;
esac
transfer $TARGETS
