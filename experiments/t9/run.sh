#!/usr/bin/env bash
# The paper's T9 in small: does it matter that the responses pass their tests? One generation run, three training sets of one size
# (responses that pass, any, and that fail), several training seeds, every model scored on HumanEval+ and MBPP+ (and on held-out tasks, with HELDOUT and BENCHMARKS below).
# No test is shown in an instruction, as some are in the paper's main run: the sets would differ in more than the choice of responses.
#
#   experiments/t9/run.sh                    the embedded model: an hour and a quarter on 2 cores
#   OUT=runs/t9-1.5b MODEL=Qwen/Qwen2.5-Coder-1.5B PROMPT=completion GENERATE="--limit 2000" TRAIN= EVALUATE= experiments/t9/run.sh
#
# Given again, it goes on where it was. The scores are in OUT/table.html, the planned comparisons in OUT/analysis.
# TAG=-2e-5 TRAIN="... --lr 2e-5" experiments/t9/run.sh trains and scores again on the same data, under names that end in the tag.
set -euo pipefail
cd "$(dirname "$0")/../.."
source environment.sh

MODEL=${MODEL-models/smollm2-135m}
OUT=${OUT-runs/t9}
SEEDS=${SEEDS-0 1 2} # of the training
HELDOUT=${HELDOUT-0} # share of tasks; with BENCHMARKS="humaneval mbpp self" they are scored, too
PROMPT=${PROMPT-auto}
SOURCE=${SOURCE-$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')} # the installed packages
# Settings for the embedded model
GENERATE=${GENERATE---limit 1500 --samples 4 --temperature 0.4 --max-tokens 256 --shot-sets 4 --judge 0 --categories function
    --difficulties easy --shots 4,4,5}
TRAIN=${TRAIN---epochs 2 --batch-size 8 --lr 1e-4 --precision mixed --chat-template keep}
EVALUATE=${EVALUATE---max-tokens 256 --samples 3 --temperature 0.8}
BENCHMARKS=${BENCHMARKS-humaneval mbpp}
TAG=${TAG-}
[ "$MODEL" != models/smollm2-135m ] || python extras/embedded.py "$MODEL"

python selfcodealign.py run --model "$MODEL" --source "$SOURCE" --out "$OUT" --heldout "$HELDOUT" --test-in-instruction 0 $GENERATE
if [[ " $BENCHMARKS " == *" self "* && ! -s $OUT/heldout.jsonl ]]; then
    echo "$OUT has no held-out task to score on: more seeds, or BENCHMARKS without self" >&2; exit 2
fi
models=("$MODEL") folders=("$OUT/base") prompts=("$PROMPT")
for choice in passing random-subset failing; do
    suffix=-$choice
    if [ $choice = passing ]; then suffix=; else python experiments/baselines.py $choice --out "$OUT"; fi
    for seed in $SEEDS; do
        name=$choice-$seed$TAG
        python train.py --model "$MODEL" --data "$OUT/sft$suffix.jsonl" --out "$OUT/model-$name" --seed "$seed" $TRAIN
        models+=("$OUT/model-$name") folders+=("$OUT/$name") prompts+=(auto)
    done
done
python eval.py --model "${models[@]}" --prompt "${prompts[@]}" --benchmark $BENCHMARKS --data "$OUT/heldout.jsonl" \
    --out "${folders[@]}" $EVALUATE
[ -n "$TAG" ] || declare -p TRAIN EVALUATE >"$OUT/settings.sh" # for experiments/t8, which trains and scores alike
python eval.py --table "${folders[@]}" --out "$OUT"
python selfcodealign.py report --out "$OUT"
# The planned comparisons: they were named before the run.
python - "$OUT" "$TAG" $SEEDS <<'PYTHON' >"$OUT/plan$TAG.json"
import json, sys
out, tag, *seeds = sys.argv[1:]
sets = {name: [f"{out}/{name}-{seed}{tag}" for seed in seeds] for name in ("passing", "random-subset", "failing")}
base, any_response = [f"{out}/base"], sets["random-subset"]
pairs = {
    "passing - any": (any_response, sets["passing"]),
    "passing - failing": (sets["failing"], sets["passing"]),
    "any - failing": (sets["failing"], any_response),
    "passing - model before": (base, sets["passing"]),
    "any - model before": (base, any_response),
    "failing - model before": (base, sets["failing"]),
}
print(json.dumps({"suite": "both+", "comparisons": [{"name": name, "a": a, "b": b} for name, (a, b) in pairs.items()]}))
PYTHON
python experiments/analysis.py compare "$OUT/plan$TAG.json" --out "$OUT/analysis$TAG"
