#!/usr/bin/env bash
# The paper's T8 in small: does a model learn more from its own data than from another model's, as many examples?
# LEARNER has been through experiments/t9/run.sh; of WRITER a run folder is enough. The larger set is cut to the size of
# the smaller; where the model's own is whole, its trainings and scores are those of experiments/t9.
#
#   experiments/t8/run.sh                                         the embedded model, its own data and the 0.5B model's
#   LEARNER=runs/t9-0.5b WRITER=runs/t9 SEEDS="0 1" experiments/t8/run.sh    the other way round
#
# OWN and OTHER may name other training sets. Trainings and scores have the settings that LEARNER's had.
# Given again, it goes on where it was. The scores are in OUT/table.html, the planned comparisons in OUT/analysis.
set -euo pipefail
cd "$(dirname "$0")/../.."
source environment.sh

LEARNER=${LEARNER-runs/t9} # a finished experiments/t9/run.sh
WRITER=${WRITER-runs/t9-0.5b} # the run folder of another model
LEARNER=${LEARNER%/} WRITER=${WRITER%/}
OWN=${OWN-$LEARNER/sft.jsonl} OTHER=${OTHER-$WRITER/sft.jsonl} # the training sets
OUT=${OUT-$LEARNER-on-$(basename "$WRITER")}
SEEDS=${SEEDS-0 1 2} # of the training
for file in "$LEARNER/settings.sh" "$LEARNER/config.json" "$LEARNER/sft.jsonl" "$LEARNER/base" "$OWN" "$OTHER"; do
    [ -e "$file" ] || { echo "there is no $file: experiments/t9/run.sh, or a run of the other model, makes it" >&2; exit 2; }
done
source "$LEARNER/settings.sh" # TRAIN and EVALUATE

model=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["model"])' "$LEARNER/config.json")
size=$(cat <(wc -l <"$OWN") <(wc -l <"$OTHER") | sort -n | head -n 1)
mkdir -p "$OUT"
head -n "$size" "$OWN" >"$OUT/own.jsonl" # examples stand in a drawn order
head -n "$size" "$OTHER" >"$OUT/other.jsonl"
models=() folders=() own=() other=()
for seed in $SEEDS; do
    if cmp -s "$OUT/own.jsonl" "$LEARNER/sft.jsonl" && [ -d "$LEARNER/passing-$seed" ]; then
        own+=("$LEARNER/passing-$seed") learning=other
    else
        own+=("$OUT/own-$seed") learning="own other"
    fi
    other+=("$OUT/other-$seed")
    for data in $learning; do
        python train.py --model "$model" --data "$OUT/$data.jsonl" --out "$OUT/model-$data-$seed" --seed "$seed" $TRAIN
        models+=("$OUT/model-$data-$seed") folders+=("$OUT/$data-$seed")
    done
done
python eval.py --model "${models[@]}" --benchmark humaneval mbpp --out "${folders[@]}" $EVALUATE
python eval.py --table "$LEARNER/base" "${own[@]}" "${other[@]}" --out "$OUT"
python selfcodealign.py report --out "$OUT"
# The planned comparisons: they were named before the run.
python - "$LEARNER/base" "${own[@]}" "${other[@]}" <<'PYTHON' >"$OUT/plan.json"
import json, sys
base, *folders = sys.argv[1:]
own, other = folders[:len(folders) // 2], folders[len(folders) // 2:]
pairs = {"own data - other model's": (other, own), "own data - model before": ([base], own), "other model's - model before": ([base], other)}
print(json.dumps({"suite": "both+", "comparisons": [{"name": name, "a": a, "b": b} for name, (a, b) in pairs.items()]}))
PYTHON
python experiments/analysis.py compare "$OUT/plan.json" --out "$OUT/analysis"
