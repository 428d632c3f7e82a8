#!/usr/bin/env bash
# Does the default run help? Five run seeds of ./run.sh, the model before scored once, every model after compared with it, all pooled.
#
#   experiments/first/run.sh                    about half an hour on 2 cores; given again, it goes on where it was
#   OUT=runs/more SEEDS="5 6 7" experiments/first/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

OUT=${OUT-runs/first-seeds}
SEEDS=${SEEDS-0 1 2 3 4}
export BASE=$OUT/base
for seed in $SEEDS; do
    ./run.sh --seed "$seed" --out "$OUT/$seed"
done
source environment.sh
after=()
for seed in $SEEDS; do after+=("$OUT/$seed/eval-$(sha256sum "$OUT/$seed/sft.jsonl" | cut -c1-8)"); done
# The settings of run.sh were chosen on the first half of MBPP+'s tasks: the second comparison leaves them out.
python - "$BASE/mbpp/result.json" >"$OUT/chosen-on.json" <<'PYTHON'
import json, sys
tasks = list(json.load(open(sys.argv[1]))["tasks"])
print(json.dumps(tasks[: len(tasks) // 2]))
PYTHON
python eval.py --compare "$BASE" "${after[@]}" | tee "$OUT/all-tasks.txt"
python eval.py --compare "$BASE" "${after[@]}" --flagged "$OUT/chosen-on.json" | tee "$OUT/unseen-tasks.txt"
