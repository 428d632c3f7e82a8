#!/usr/bin/env bash
# The paper's T11 in small: does a model learn more from a stronger model's answers to its tasks than from its own, which pass their tests?
# The teacher answers each task of a finished experiments/t9/run.sh; as in the paper, its answers are learned whether they pass or not.
#
#   experiments/t11/run.sh                    the 0.5B model, and its 1.5B sister as the teacher
#
# Given again, it goes on where it was. The scores are in OUT/trained/table.html, the planned comparisons in OUT/trained/analysis.
set -euo pipefail
cd "$(dirname "$0")/../.."
source environment.sh

LEARNER=${LEARNER-runs/t9-0.5b} # a finished experiments/t9/run.sh
LEARNER=${LEARNER%/}
TEACHER=${TEACHER-models/qwen2.5-coder-1.5b-instruct}
OUT=${OUT-runs/t11}
# As LEARNER's answers, but for the number of samples
GENERATE=${GENERATE---samples 2 --temperature 0.2 --max-tokens 320 --shot-sets 4 --categories function --difficulties easy --shots 4,4,1}

for file in "$LEARNER/settings.sh" "$LEARNER/config.json" "$LEARNER/sft.jsonl" "$LEARNER/base"; do
    [ -e "$file" ] || { echo "there is no $file: experiments/t9/run.sh makes it" >&2; exit 2; }
done
python experiments/baselines.py given-tasks --model "$TEACHER" --source "$LEARNER/sft.jsonl" --out "$OUT" --test-in-instruction 0 $GENERATE
python experiments/baselines.py random --out "$OUT"
# Of both sets the tasks that are in the other, too
python - "$LEARNER/sft.jsonl" "$OUT/sft-random.jsonl" "$OUT/own.jsonl" "$OUT/other.jsonl" <<'PYTHON'
import json, sys
own, other, *kept = sys.argv[1:]
sets = [{json.loads(line)["instruction"]: line for line in open(file)} for file in (own, other)]
shared = set(sets[0]) & set(sets[1])
for lines, file in zip(sets, kept):
    open(file, "w").writelines(line for task, line in lines.items() if task in shared)
print(len(shared), "tasks answered by both")
PYTHON
LEARNER=$LEARNER OWN=$OUT/own.jsonl OTHER=$OUT/other.jsonl OUT=$OUT/trained experiments/t8/run.sh
