#!/usr/bin/env bash
# Every test, with one command. Options go to pytest: ./test.sh -k sandbox
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh
python embedded.py models/smollm2-135m
exec python -m pytest tests "$@"
