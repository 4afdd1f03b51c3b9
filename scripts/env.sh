# Sourced by the other scripts: goes to the clone's root, and into a Python environment, the
# active one or else .venv, with this package (and the extras in $EXTRAS) installed. INSTALL=no
# takes the environment as it is.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "${INSTALL:-yes}" = no ] && return

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
fi
echo "Installing into ${VIRTUAL_ENV:-$CONDA_PREFIX} (the first time, PyTorch takes minutes)"
python -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:-}"
