#!/usr/bin/env bash
# Build the documentation as a site in site/ (open site/index.html). Strict: a link to nothing, or a
# public name without a docstring, fails. Arguments go to mkdocs; under --quiet it counts no warnings.
# Its tools get an environment of their own, .venv-docs: they need other versions of libraries than
# the package, and not the package itself. The page of docs/quickstart.ipynb has outputs after
#   mkdir -p output && cp docs/quickstart.ipynb output/ && jupyter execute --inplace output/quickstart.ipynb
# (3 minutes; the extra [notebook]).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv-docs/bin/python ] || "${PYTHON:-python3}" -m venv .venv-docs
.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict "$@"
