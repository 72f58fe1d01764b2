#!/usr/bin/env bash
# pack|unpack: results carried from a machine without internet to one with it.
#   pack [flags]              one file of ./results and its manifest; pack --help lists the flags
#   unpack [archive] [flags]  bring it in; without a name, the newest result*.tar.gz in ~/Downloads or here
#   PYTHON_BIN                Python command (python; python3 if there is no python)
#   SIDECAR_PY                the sidecar's Python script (eval_wandb_sidecar.py in the repository)
set -euo pipefail

fail() {
  local code=$1
  # One line, whatever a name holds.
  printf '%s: %s\n' sync_results_from_remote.sh "${2//[[:cntrl:]]/?}" >&2
  exit "$code"
}

here=${BASH_SOURCE[0]%/*}
[[ "$here" != "${BASH_SOURCE[0]}" ]] || here=.
if [[ -z "${PYTHON_BIN:-}" ]]; then
  PYTHON_BIN=python
  command -v python >/dev/null || PYTHON_BIN=python3
fi
sidecar_py=${SIDECAR_PY:-./eval_wandb_sidecar.py}
[[ -n "${SIDECAR_PY:-}" || -f "$sidecar_py" ]] || sidecar_py=$here/../eval_wandb_sidecar.py
[[ "$sidecar_py" != -* ]] || sidecar_py=./$sidecar_py

if ! command -v -- "$PYTHON_BIN" >/dev/null; then
  fail 127 "$PYTHON_BIN: command not found; set PYTHON_BIN, such as PYTHON_BIN=python3"
fi
if [[ ! -f "$sidecar_py" ]]; then
  fail 2 "SIDECAR_PY $sidecar_py: there is no such file"
fi

command=${1:-}
case "$command" in
  pack | unpack) shift ;;
  -h | --help | help | "")
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ -n "$command" ]] && exit 0 || exit 2
    ;;
  *)
    fail 2 "unknown command $command (pack, unpack)"
    ;;
esac
exec -- "$PYTHON_BIN" "$sidecar_py" "$command" "$@"
