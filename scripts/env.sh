# Sourced by the other scripts: goes to the clone's root, and into a Python environment, the
# active one or else .venv, with this package (and the extras in $EXTRAS) installed. INSTALL=no
# takes the environment as it is.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# committed: ends a script whose results must be those of a commit, where files of the clone have
# changed; DIRTY=1 lets them be
committed() {
    [ -z "${DIRTY:-}" ] || return 0
    local changed
    changed=$(git status --porcelain --untracked-files=no 2> /dev/null) || return 0 # no clone
    [ -z "$changed" ] && return
    echo "files of this clone have changed: commit them first, or set DIRTY=1" >&2
    exit 2
}

# choose_parts KNOWN [DEFAULT]: sets PARTS, from the environment or else DEFAULT (all that are
# known), and ends the script if it names others
choose_parts() {
    PARTS=${PARTS:-${2:-$1}}
    local name
    for name in $PARTS; do
        [[ " $1 " == *" $name "* ]] || { echo "PARTS: no part $name: use $1" >&2; exit 2; }
    done
}
# part NAME: whether PARTS has it
part() { [[ " $PARTS " == *" $1 "* ]]; }

[ "${INSTALL:-yes}" = no ] && return

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
fi
echo "Installing into ${VIRTUAL_ENV:-$CONDA_PREFIX} (the first time, PyTorch takes minutes)"
python -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:-}"
