#!/usr/bin/env bash
# What TRL, LLaMA-Factory and axolotl learn of an export, counted with each library's own loader: tests/works_with.py.
#
#   ./tests/works_with.sh MODEL EXPORT ...     EXPORT: folders of `export --format messages` or `preference`; MODEL: whose tokenizer
#
# Installs them in a temporary folder, over the packages of .venv, without what they need only to train (100 MB).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
model=$(realpath "$1")
mapfile -t exports < <(realpath "${@:2}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PATH="$here/.venv/bin:$PATH" HF_HUB_OFFLINE=1 HF_DATASETS_CACHE=$scratch/cache
cd "$scratch" # where libraries leave files

learn() { # NAME PACKAGES..
    local name=$1
    shift
    python -m pip install -q --no-deps --target "$scratch/$name" "$@"
    for folder in "${exports[@]}"; do
        [ "$name" != axolotl ] || grep -q '"messages"' "$folder/train.jsonl" || continue # its pairs have a form of their own
        PYTHONPATH=$scratch/$name python "$here/tests/works_with.py" "$name" "$folder" "$model" 2>"$scratch/log" |
            grep 'tokens learned' || { tail -n 20 "$scratch/log" >&2; exit 1; }
    done
}

learn trl trl==1.16.0
learn axolotl axolotl==0.19.0 colorama==0.4.6
mkdir -p "$scratch/llama-factory/torchaudio" # imported, never called for text, and its wheels need CUDA
touch "$scratch/llama-factory/torchaudio/__init__.py"
learn llama-factory llamafactory==0.9.5 transformers==5.6.0 tokenizers==0.22.2 huggingface_hub==1.17.0 trl==0.24.0 \
    peft==0.18.1 datasets==4.0.0 accelerate==1.11.0 fsspec==2025.3.0 dill==0.3.8 multiprocess==0.70.16 av==16.0.0 \
    omegaconf==2.4.0 antlr4-python3-runtime==4.9.3 tyro==0.8.14 docstring_parser==0.18.0 shtab==1.13.0 \
    typeguard==4.6.1 modelscope==1.40.2 torchdata==0.11.0
