#!/usr/bin/env bash
# The paper's T9 in small: does it matter that the responses pass their tests? One generation run, three training sets of one size
# (responses that pass, any, and that fail), several training seeds, every model scored on HumanEval+, MBPP+ and held-out tasks.
# No test is shown in an instruction, as some are in the paper's main run: the sets would differ in more than the choice of responses.
#
#   experiments/t9/run.sh                    the embedded model: some hours on 2 cores
#   OUT=runs/t9-1.5b MODEL=Qwen/Qwen2.5-Coder-1.5B PROMPT=completion GENERATE="--limit 2000" TRAIN= EVALUATE= experiments/t9/run.sh
#
# Given again, it goes on where it was. The table at its end is OUT/table.html, each pair's comparison OUT/compare-*/compare.html.
# TAG=-1e-4 TRAIN="--epochs 3 --batch-size 8 --lr 1e-4 --precision mixed" experiments/t9/run.sh trains and scores again on the same data, under
# names that end in the tag.
set -euo pipefail
cd "$(dirname "$0")/../.."
source environment.sh

MODEL=${MODEL-models/smollm2-135m}
OUT=${OUT-runs/t9}
SEEDS=${SEEDS-0 1} # of the training
PROMPT=${PROMPT-auto}
SOURCE=${SOURCE-$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')} # the installed packages
# For the embedded model, as run.sh: easy tasks, and steps that a few dozen examples need.
GENERATE=${GENERATE---limit 800 --samples 5 --temperature 0.2 --max-tokens 256 --decks 4 --judge 0 --categories function
    --difficulties easy --shots 4,4,3}
TRAIN=${TRAIN---epochs 3 --batch-size 8 --lr 2e-5 --precision mixed}
EVALUATE=${EVALUATE---max-tokens 384}
BENCHMARKS=${BENCHMARKS-humaneval mbpp self}
TAG=${TAG-}
[ "$MODEL" != models/smollm2-135m ] || python extras/embedded.py "$MODEL"

python selfcodealign.py run --model "$MODEL" --source "$SOURCE" --out "$OUT" --heldout 0.2 --test-in-instruction 0 $GENERATE
if [[ " $BENCHMARKS " == *" self "* && ! -s $OUT/heldout.jsonl ]]; then
    echo "$OUT has no held-out task to score on: more seeds, or BENCHMARKS without self" >&2; exit 2
fi
models=("$MODEL") folders=("$OUT/base") prompts=("$PROMPT")
for choice in passing random-subset failing; do
    suffix=-$choice
    if [ $choice = passing ]; then suffix=; else python selfcodealign.py rival $choice --out "$OUT"; fi
    for seed in $SEEDS; do
        name=$choice-$seed$TAG
        python train.py --model "$MODEL" --data "$OUT/sft$suffix.jsonl" --out "$OUT/model-$name" --seed "$seed" $TRAIN
        models+=("$OUT/model-$name") folders+=("$OUT/$name") prompts+=(auto)
    done
done
python eval.py --model "${models[@]}" --prompt "${prompts[@]}" --benchmark $BENCHMARKS --data "$OUT/heldout.jsonl" \
    --out "${folders[@]}" $EVALUATE
for folder in "${folders[@]:1}"; do
    python eval.py --compare "$OUT/base" "$folder" --out "$OUT/compare-$(basename "$folder")"
done
for seed in $SEEDS; do
    python eval.py --compare "$OUT/random-subset-$seed$TAG" "$OUT/passing-$seed$TAG" --out "$OUT/compare-passing-random-$seed$TAG"
    python eval.py --compare "$OUT/failing-$seed$TAG" "$OUT/passing-$seed$TAG" --out "$OUT/compare-passing-failing-$seed$TAG"
done
python eval.py --table "${folders[@]}" --out "$OUT"
for folder in "$OUT" "$OUT"/compare-*; do python selfcodealign.py comparison --out "$folder"; done
