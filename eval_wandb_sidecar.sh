#!/usr/bin/env bash
# run|once|start|stop|status|tail|show|explain|retry|doctor|prepare-manifest: with --sft-root they watch, else they upload.
#   PYTHON_BIN   Python command (python; python3 where there is no python)
#   SIDECAR_PY   the sidecar's Python script (eval_wandb_sidecar.py beside this file)
#   MANAGER_DIR  logs and pid files (./log/eval_sidecar)
#   INSTANCE     instance name, the same as --instance
set -euo pipefail

fail() {
  local code=$1
  # One line, whatever a name holds.
  printf '%s: %s\n' eval_wandb_sidecar.sh "${2//[[:cntrl:]]/?}" >&2
  exit "$code"
}

here=${BASH_SOURCE[0]%/*}
[[ "$here" != "${BASH_SOURCE[0]}" ]] || here=.
if [[ -z "${PYTHON_BIN:-}" ]]; then
  PYTHON_BIN=python
  command -v python >/dev/null || PYTHON_BIN=python3
fi
sidecar_py=${SIDECAR_PY:-./eval_wandb_sidecar.py}
[[ -n "${SIDECAR_PY:-}" || -f "$sidecar_py" ]] || sidecar_py=$here/eval_wandb_sidecar.py
[[ "$sidecar_py" != -* ]] || sidecar_py=./$sidecar_py

if ! command -v -- "$PYTHON_BIN" >/dev/null; then
  fail 127 "$PYTHON_BIN: command not found; set PYTHON_BIN, such as PYTHON_BIN=python3"
fi
if [[ ! -f "$sidecar_py" ]]; then
  fail 2 "SIDECAR_PY $sidecar_py: there is no such file"
fi

command=${1:-}
case "$command" in
  run | once | start | stop | restart | status | tail | forget | show | explain | retry | doctor | prepare-manifest) shift ;;
  -h | --help | help | "")
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ -n "$command" ]] && exit 0 || exit 2
    ;;
  *)
    fail 2 "unknown command $command (run, once, start, stop, restart, status, tail, forget, show, explain, retry, doctor, prepare-manifest)"
    ;;
esac
export MANAGER_DIR=${MANAGER_DIR:-./log/eval_sidecar}
exec -- "$PYTHON_BIN" "$sidecar_py" "$command" "$@"
