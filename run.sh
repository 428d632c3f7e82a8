#!/usr/bin/env bash
# The whole loop with one command: seeds to data, fine-tuning, and HumanEval+ of the model before and after.
#
#   ./run.sh                                           the embedded 135M model, about a quarter of an hour on 2 cores
#   ./run.sh --limit 100                               any option of `selfcodealign.py run`
#   ./run.sh --model MODEL --source FOLDER --out runs/mine --limit 20000
#
# Given again, it goes on where it was. A base model other than the embedded one gets the paper's settings throughout.
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh

model= out=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --model) next=$((i + 1)); model=${!next-} ;;
        --model=*) model=${!i#*=} ;;
        --out) next=$((i + 1)); out=${!next-} ;;
        --out=*) out=${!i#*=} ;;
    esac
done
if [ -z "$model" ]; then
    model=models/smollm2-135m
    python embedded.py $model
    # Tasks that 135M parameters can solve now and then, no judge (it gives every docstring the same answer), and steps that a few
    # dozen examples need.
    generate="--model $model --limit 180 --samples 4 --temperature 0.2 --max-tokens 256 --decks 4
        --judge 0 --categories function --difficulties easy --concept-shots 4 --instruction-shots 4 --response-shots 3"
    train="--epochs 2 --batch-size 8 --lr 2e-5 --precision mixed"
    evaluate="--max-tokens 384"
    base_prompt=auto
else
    generate= train= evaluate=
    base_prompt=completion
fi
if [ -z "$out" ]; then
    out=runs/first
    generate="$generate --out $out"
fi

python selfcodealign.py run $generate "$@"
version=$(sha256sum "$out/sft.jsonl" | cut -c1-8) # more data makes another model, and its own score
aligned=$out/model-$version
python train.py --model "$model" --data "$out/sft.jsonl" --out "$aligned" $train
python eval.py --model "$model" --benchmark humaneval --out "$out/eval-base" --prompt $base_prompt $evaluate
python eval.py --model "$aligned" --benchmark humaneval --out "$out/eval-$version" $evaluate
echo
python selfcodealign.py report --out "$out"
echo
python eval.py --compare "$out/eval-base" "$out/eval-$version"
