#!/usr/bin/env bash
# Install what the tests need and run them, in two processes. Arguments go to pytest.
set -euo pipefail
EXTRAS="[test]" source "$(dirname "$0")/env.sh"
python -m pytest -n 2 "$@"
