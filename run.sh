#!/usr/bin/env bash
# The whole loop with one command: seeds to data, fine-tuning, and HumanEval+ and MBPP+ of the model before and after.
#
#   ./run.sh                                           the embedded 135M model, 7 to 11 minutes on 2 cores
#   ./run.sh --seed 1 --out runs/second                any option of `selfcodealign.py run`
#   ./run.sh --model MODEL --source FOLDER --out runs/mine --limit 20000
#
# Given again from the same folder, it goes on where it was. A base model other than the embedded one gets the paper's settings throughout.
# BASE=FOLDER ./run.sh keeps the result of the model before in FOLDER, so that several runs share it.
# Relative paths are those of the folder that it is called from.
# EVALUATE='--limit 20' ./run.sh adds options of eval.py, TRAIN='--lr 2e-5' those of train.py. AS_ON_GPUS=2 ./run.sh does on a processor,
# slowly, what it would do on two GPUs: vLLM's own server with two copies of the model, execution beside generation, train.py on two ranks.
set -euo pipefail
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;; esac
for name in HUMANEVAL_OVERRIDE_PATH MBPP_OVERRIDE_PATH BENCHMARKS_PATH; do
    case ${!name-} in "" | /*) ;; *) export "$name=$PWD/${!name}" ;; esac
done
caller=$PWD home=
cd "$(dirname "$0")"
source environment.sh
benchmarks=$(python -m parts.benchmarks | tr '\n' ' ')
benchmarks=${benchmarks% }

model= out= given=${BASE-} parallel= launch=python
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --model) next=$((i + 1)); model=${!next-} ;;
        --model=*) model=${!i#*=} ;;
        --out) next=$((i + 1)); out=${!next-} ;;
        --out=*) out=${!i#*=} ;;
        --source | --source=*) given=yes ;;
        --tensor-parallel) next=$((i + 1)); parallel="--tensor-parallel ${!next-}" ;;
        --tensor-parallel=*) parallel=${!i} ;;
    esac
done
if [ "$model$out$given" ] && ! [ "$caller" -ef . ]; then
    home=$PWD/
    cd "$caller"
fi
if [ -z "$model" ]; then
    model=${home}models/smollm2-135m
    python "${home}extras/embedded.py" "$model"
    # Tasks that 135M parameters can solve now and then; more few-shot examples, without which it rarely keeps to the form; no judge
    # (it gives every docstring the same answer); a rate at which few steps show, and its own chat template, which it knows. How they
    # were chosen: experiments/first.
    set -- --model "$model" "$@"
    generate="--limit 100 --samples 4 --temperature 0.4 --max-tokens 256 --shot-sets 4
        --judge 0 --categories function --difficulties easy --shots 4,4,5"
    train="--epochs 3 --batch-size 4 --lr 1e-4 --precision fp32 --recompute off --chat-template keep"
    evaluate="--max-tokens 256"
    base_prompt=auto
    gpus=${AS_ON_GPUS-1}
else
    generate= train= evaluate=
    base_prompt=completion
    gpus=${AS_ON_GPUS-$(python -c 'import torch; print(torch.cuda.device_count())')}
fi
if [ "$gpus" -gt 1 ]; then launch="torchrun --standalone --nproc-per-node $gpus"; fi
out=${out%/}
if [ -z "$out" ]; then
    out=${home}runs/first
    set -- --out "$out" "$@"
fi

if [ "$benchmarks" = humaneval ]; then # one task in three: three samples each, since one answer would say too little
    evaluate="$evaluate --samples 3 --temperature 0.2"
fi
echo "scored before and after: $benchmarks"

python "${home}selfcodealign.py" run $generate "$@"
version=$(sha256sum "$out/sft.jsonl" | cut -c1-8) # more data makes another model, and its own score
base=${BASE:-$out/eval-base} aligned=$out/model-$version
$launch "${home}train.py" --model "$model" --data "$out/sft.jsonl" --out "$aligned" $train ${TRAIN-}
python "${home}eval.py" --model "$model" "$aligned" --prompt $base_prompt auto --benchmark ${benchmarks//+/} \
    --out "$base" "$out/eval-$version" $evaluate $parallel ${EVALUATE-}
echo
python "${home}selfcodealign.py" report --out "$out"
echo
python "${home}eval.py" --compare "$base" "$out/eval-$version" --out "$out/comparison-$version"
python "${home}selfcodealign.py" report --out "$out/comparison-$version"
python "${home}selfcodealign.py" card --model "$aligned" --scores "$out/eval-$version"
