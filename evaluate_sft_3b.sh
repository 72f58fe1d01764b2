#!/usr/bin/env bash
# Evaluates the checkpoints of one model: bash evaluate_sft_3b.sh <sft-root>
#
# Results go to results/<model>/<checkpoint>/ under the current directory. Everything else comes from the
# environment: CATEGORY CUDA_LIST PYTHON_BIN TEST_DATA_PATH INDEX_PATH BATCH_SIZE MAX_NEW_TOKENS NUM_BEAMS
# TEMPERATURE DO_SAMPLE LENGTH_PENALTY SID_LEVELS SEED TRUST_REMOTE_CODE CKPT_LIST.
#
# CKPT_LIST: names of checkpoints under <sft-root>, or absolute paths, separated by white space; or one path,
# which may hold spaces. Empty: every checkpoint-<step> under <sft-root>, or <sft-root> itself if it is one.
#
# `eval-sidecar` sets two variables beside these: EVAL_SIDECAR_PYTHON, the Python that it runs in, is used if
# PYTHON_BIN cannot evaluate; with EVAL_SIDECAR_WARM, the evaluation is done by a process that the sidecar keeps.
#
# This file comes with the package too: `eval-sidecar evaluate <sft-root>` runs it.
set -euo pipefail

# One line, whatever the name of a folder holds.
say() { printf '%s\n' "${1//[[:cntrl:]]/?}" >&2; }

fail() {
    say "error: $1"
    exit 2
}

# Whether a Python can run the evaluator; finds the libraries without importing them, and not in the working
# directory, where a folder of results may have their name.
can_evaluate() {
    "$1" -c '
import importlib.util, sys
sys.path[:] = filter(None, sys.path)
found = [importlib.util.find_spec(name) for name in ("torch", "transformers")]
sys.exit(sys.version_info < (3, 9) or any(spec is None or spec.origin is None for spec in found))
' >/dev/null 2>&1
}

[ "$#" -eq 1 ] && [ -n "$1" ] || fail "usage: bash evaluate_sft_3b.sh <sft-root>"
here=${BASH_SOURCE[0]%/*}
[ "$here" != "${BASH_SOURCE[0]}" ] || here=.
# The dot keeps a line break at the end of a name.
here=$(CDPATH='' cd -P -- "$here" && printf '%s.' "$PWD")
here=${here%.}
root=$1
case $root in -*) root=./$root ;; esac
while [ "$root" != / ] && [ "${root%/}" != "$root" ]; do root=${root%/}; done
[ -d "$root" ] || fail "$root: no such folder"

category=${CATEGORY:-Industrial_and_Scientific}
test_data=${TEST_DATA_PATH:-data/$category/sft/test.json}
index=${INDEX_PATH:-data/$category/id2sid.json}
case $test_data in -*) test_data=./$test_data ;; esac
case $index in -*) index=./$index ;; esac
python=${PYTHON_BIN:-python}
if ! can_evaluate "$python"; then
    for other in "${EVAL_SIDECAR_PYTHON:-}" "$here/.venv/bin/python" python3; do
        if [ -n "$other" ] && can_evaluate "$other"; then
            say "$python has no torch and transformers: using $other"
            python=$other
            break
        fi
    done
fi
# One that lacks them says itself how they are installed.
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1 \
    || fail "$python is not a Python that runs, or is older than 3.9: set PYTHON_BIN to one with torch and transformers"

# The checkpoints as arguments; "set --" because an empty array is an error in bash 3.2 under set -u.
set --
list=${CKPT_LIST:-}
if [ -n "${list//[[:space:]]/}" ]; then
    if [ -d "$root/$list" ]; then
        set -- --checkpoint "$root/$list"
    elif [ -d "$list" ]; then
        case $list in -*) list=./$list ;; esac
        set -- --checkpoint "$list"
    else
        IFS=$' \t\n' read -r -d '' -a names <<<"$list" || true
        for name in "${names[@]}"; do
            case $name in
                /*) set -- "$@" --checkpoint "$name" ;;
                *) set -- "$@" --checkpoint "$root/$name" ;;
            esac
        done
    fi
elif [[ ${root##*/} =~ ^checkpoint-[0-9]+$ ]]; then
    set -- --checkpoint "$root"
else
    while IFS= read -r step; do
        [ -n "$step" ] && set -- "$@" --checkpoint "$root/checkpoint-$step"
    done < <(
        for folder in "$root"/checkpoint-*; do
            step=${folder##*/checkpoint-}
            if [ -d "$folder" ] && [[ $step =~ ^[0-9]+$ ]]; then printf '%s\n' "$step"; fi
        done | sort -n
    )
    [ "$#" -gt 0 ] || fail "$root: holds no checkpoint-<step> folder"
fi

if [ -n "${EVAL_SIDECAR_WARM:-}" ]; then set -- "$@" --warm "$EVAL_SIDECAR_WARM"; fi

# The package that this file came with, or else, for a copy of this file, the one that is installed.
start=(-m eval_sidecar.genrec)
for package in "$here/src/eval_sidecar" "$here"; do
    [ ! -f "$package/genrec/start.py" ] || start=("$package/genrec/start.py" eval_sidecar.genrec.cli)
done
if [ "${start[0]}" = -m ] && ! "$python" -c '
import importlib.util, sys
sys.path[:] = filter(None, sys.path)
sys.exit(importlib.util.find_spec("eval_sidecar") is None)
' >/dev/null 2>&1; then
    fail "eval_sidecar is neither beside $here/${BASH_SOURCE[0]##*/} nor installed in $python: run the script of a checkout, or eval-sidecar evaluate"
fi

# Nor do the evaluator's own processes import from the working directory (since Python 3.11).
export PYTHONSAFEPATH=1
# exec: a signal to this process is one to the evaluation.
exec -- "$python" "${start[@]}" "$@" \
    --test-data "$test_data" \
    --index "$index" \
    --output-root results \
    --devices "${CUDA_LIST:-0}" \
    --batch-size "${BATCH_SIZE:-8}" \
    --num-beams "${NUM_BEAMS:-50}" \
    --max-new-tokens "${MAX_NEW_TOKENS:-256}" \
    --temperature "${TEMPERATURE:-1.0}" \
    --do-sample "${DO_SAMPLE:-False}" \
    --length-penalty "${LENGTH_PENALTY:-0.0}" \
    --sid-levels "${SID_LEVELS:--1}" \
    --seed "${SEED:-42}" \
    --trust-remote-code "${TRUST_REMOTE_CODE:-False}"
