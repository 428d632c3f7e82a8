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
python eval.py --compare "$BASE" "${after[@]}" | tee "$OUT/all-tasks.txt"
# The settings of run.sh were chosen on the first half of MBPP+'s tasks: the second comparison is of results without them.
unseen=()
for folder in "$BASE" "${after[@]}"; do unseen+=("$OUT/unseen/${folder#"$OUT"/}"); done
python - "$OUT" "$BASE" "${after[@]}" <<'PYTHON'
import json, sys
from pathlib import Path
out, *folders = map(Path, sys.argv[1:])
for file in (folder / benchmark / "result.json" for folder in folders for benchmark in ("humaneval", "mbpp")):
    result = json.loads(file.read_text())
    if result["benchmark"] == "mbpp":
        result["tasks"] = dict(list(result["tasks"].items())[len(result["tasks"]) // 2 :])
    unseen = out / "unseen" / file.relative_to(out)
    unseen.parent.mkdir(parents=True, exist_ok=True)
    unseen.write_text(json.dumps(result))
PYTHON
python eval.py --compare "${unseen[@]}" | tee "$OUT/unseen-tasks.txt"
