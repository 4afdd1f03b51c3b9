#!/usr/bin/env bash
# Every method on every data set.
#   bash scripts/main_table.sh [DATA] [DATASET] [SHOTS] [SEEDS]
#   bash scripts/main_table.sh /data "caltech101 dtd" 16 "1 2 3"
# See scripts/protocol.sh for METHODS, CFG, OUTPUT and others.
set -euo pipefail
source "$(dirname "$0")/protocol.sh"

run
show methods
exit "$STATUS"
