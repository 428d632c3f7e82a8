#!/usr/bin/env bash
# Style, then every test, two at a time, with one command. Options go to pytest: ./test.sh -k sandbox, ./test.sh -n 0 --pdb
# SLOW=1 ./test.sh adds what takes longer: many thousand programs in the sandbox, the verdicts of EvalPlus's own command on whole
# benchmarks, a run of every baseline, vLLM's server with two copies of the model, killed again and again, names of the hub without a network.
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh
ruff check
ruff format --check
python extras/embedded.py models/smollm2-135m
exec python -m pytest -n 2 --dist loadgroup "$@"
