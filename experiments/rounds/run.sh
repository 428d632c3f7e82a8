#!/usr/bin/env bash
# Rounds: the aligned model writes the next round's data, from other seeds; each round is trained from the base on all data so far.
#
#   experiments/rounds/run.sh                     three rounds of the embedded model, 20 minutes on 2 cores
#   OUT=runs/rounds-1.5b MODEL=Qwen/Qwen2.5-Coder-1.5B SEEDS=20000 PROMPT=completion GENERATE= TRAIN= EVALUATE= experiments/rounds/run.sh
#
# Given again, it goes on where it was. The seeds of all rounds are gathered once, then dealt out: no seed is used twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
source environment.sh

MODEL=${MODEL-models/smollm2-135m}
OUT=${OUT-runs/rounds}
ROUNDS=${ROUNDS-3}
SEEDS=${SEEDS-180} # of each round
SOURCE=${SOURCE-$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')} # the installed packages
PROMPT=${PROMPT-auto}
GENERATE=${GENERATE---samples 4 --temperature 0.4 --max-tokens 256 --shot-sets 4 --judge 0 --categories function --difficulties easy --shots 4,4,5}
TRAIN=${TRAIN---epochs 2 --batch-size 8 --lr 1e-4 --precision mixed --chat-template keep}
EVALUATE=${EVALUATE---max-tokens 256}
[ "$MODEL" != models/smollm2-135m ] || python extras/embedded.py "$MODEL"

python selfcodealign.py seeds --model "$MODEL" --source "$SOURCE" --out "$OUT/seeds" --limit $((SEEDS * ROUNDS)) --judge 0
python - "$OUT" "$ROUNDS" <<'PYTHON'
import json, sys
from pathlib import Path
out, rounds = Path(sys.argv[1]), int(sys.argv[2])
rows = (json.loads(line) for line in (out / "seeds" / "seeds.jsonl").open())
kept = [json.dumps({"content": row["code"]}) + "\n" for row in rows if "reject" not in row]
for number in range(rounds):
    (out / f"source-{number + 1}.jsonl").write_text("".join(kept[number::rounds]))
PYTHON

writer=$MODEL # of the next data
models=("$MODEL") folders=("$OUT/eval-0") prompts=("$PROMPT")
for ((round = 1; round <= ROUNDS; round++)); do
    python selfcodealign.py run --model "$writer" --source "$OUT/source-$round.jsonl" --out "$OUT/round-$round" $GENERATE
    for ((n = 1; n <= round; n++)); do cat "$OUT/round-$n/sft.jsonl"; done >"$OUT/union-$round.jsonl"
    writer=$OUT/model-$round
    python train.py --model "$MODEL" --data "$OUT/union-$round.jsonl" --out "$writer" $TRAIN
    models+=("$writer") folders+=("$OUT/eval-$round") prompts+=(auto)
done
python eval.py --model "${models[@]}" --prompt "${prompts[@]}" --benchmark humaneval mbpp --out "${folders[@]}" $EVALUATE
python eval.py --table "${folders[@]}" --out "$OUT"
python - "$OUT" "$ROUNDS" <<'PYTHON'
import json, re, sys
from pathlib import Path
out, rounds = Path(sys.argv[1]), int(sys.argv[2])
read = lambda path: [json.loads(line) for line in path.open()]
solved = lambda n: {(file.parent.name, task) for file in (out / f"eval-{n}").glob("*/result.json")
                    for task, verdict in json.loads(file.read_text())["tasks"].items() if verdict["plus"]}
print("round | executed | pass | examples | different functions of passing | mutants killed | solved, data so far")
print(f"0 | | | | | | {len(solved(0))}")
for n in range(1, rounds + 1):
    folder = out / f"round-{n}"
    executions = read(folder / "executions.jsonl")
    passing = {row["response_id"] for row in executions if "reject" not in row}
    names = [re.findall(r"^def (\w+)", row["response"], re.M) for row in read(folder / "responses.jsonl") if row["id"] in passing]
    quality = json.loads((folder / "quality.json").read_text())
    print(n, len(executions), f"{len(passing) / len(executions):.0%}", len(read(folder / "sft.jsonl")),
          f"{len(set(map(tuple, names)))} of {len(names)}", f"{quality['killed'] / max(1, quality['mutants']):.0%}",
          f"{len(solved(n))}, {len(read(out / f'union-{n}.jsonl'))}", sep=" | ")
PYTHON
for ((round = 1; round <= ROUNDS; round++)); do
    python eval.py --compare "$OUT/eval-0" "$OUT/eval-$round" | grep 'both+'
done
