#!/usr/bin/env bash
# What must be seen on a GPU, in order of worth, each step bounded, for one H100 without a network.
#
#   tests/gpu.sh OUT          needs torch and transformers; steps that need vLLM are left out where it is not installed
#   TINY=1 tests/gpu.sh OUT   the same on a CPU with a model of two small layers: shows that the steps themselves run
#
# Each step writes OUT/STEP.json, or OUT/STEP.log with what went wrong; the last line lists them.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: tests/gpu.sh OUT}
mkdir -p "$out"

step() { # NAME SECONDS WORDS..
    local name=$1 seconds=$2
    shift 2
    timeout --kill-after 10 "$seconds" python tests/gpu.py "$@" --out "$out/$name.json" >"$out/$name.log" 2>&1
    local status=$?
    echo "$name: $([ $status = 0 ] && cat "$out/$name.json" || echo "FAILED with status $status: $(tail -n 1 "$out/$name.log")")"
}

step speed-1280 300 speed --length 1280
step speed-4096 240 speed --length 4096
step learn-mixed 240 learn --precision mixed
step learn-bf16 240 learn --precision bf16
step resume 300 resume
if python -c 'import vllm' 2>/dev/null; then
    step engine 400 engine
else
    echo "engine: left out, vLLM is not installed"
fi
