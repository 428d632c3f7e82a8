"""What became of the response tokens of a run, and what ending repetitive samples early would save.

    python tests/bench_tokens.py runs/first [RUN ...]

The second table plays vLLM's own `repetition_detection` on the samples that are on disk: a sample ends where its last
tokens are `count` times the same pattern. A false hit is a sample that was kept and would end early: its text is
what the layout makes of its response and tests, so of a few tokens the place may differ. The last line is of a stop at
tests that begin with `def`, by shares of characters.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer
from vllm.sampling_params import RepetitionDetectionParams
from vllm.v1.core.sched.utils import check_sequence_repetition

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from parts.folder import read_config
from parts.rows import read_rows
from selfcodealign import LAYOUTS

SETTINGS = [
    (4, 64, 4),
    (4, 64, 6),
    (8, 64, 4),
    (8, 64, 6),
    (8, 256, 4),
    (16, 256, 4),
]  # smallest, largest, count
FUNCTION_FIRST = re.compile(r"tests\W+python\s+def ", re.IGNORECASE)  # in tests


def ends_at(tokens: list[int], parameters: RepetitionDetectionParams) -> int:
    """After how many tokens a sample ends."""
    lengths = range(parameters.min_pattern_size * parameters.min_count, len(tokens))
    return next((n for n in lengths if check_sequence_repetition(tokens[:n], parameters)), len(tokens))


def show(folder: Path):
    config = read_config(folder)
    tokenizer, shot = AutoTokenizer.from_pretrained(config["model"]), LAYOUTS[config["layout"]].shot
    passed = {row["response_id"] for row in read_rows(folder / "executions.jsonl") if "reject" not in row}
    fates, samples, texts, function_first = Counter(), Counter(), [], []
    for row in read_rows(folder / "responses.jsonl"):
        fate = row.get("reject") or ("passes" if row["id"] in passed else "kept, fails")
        fates[fate] += row["tokens"]
        samples[fate] += 1
        text = row.get("text") or shot.partition("{response}")[2].format_map(row).partition("\n</tests>")[0]
        if "text" not in row:
            text = row["response"] + text
        kept = fate in ("passes", "kept, fails")
        texts.append((kept, tokenizer(text, add_special_tokens=False).input_ids))
        if found := FUNCTION_FIRST.search(text):
            function_first.append((kept, row["tokens"] * (1 - found.end() / len(text))))
    total = fates.total()
    print(f"{folder}: {samples.total()} samples, {total} tokens, {samples['passes']} pass:", end=" ")
    print(f"{1000 * samples['passes'] / total:.2f} for 1,000 tokens")
    for fate, tokens in fates.most_common():
        print(f"    {fate:<28}{samples[fate]:>6} samples{tokens:>9} tokens {tokens / total:>6.1%}")
    print("    patterns of  times   ended early   tokens saved   of kept samples ended")
    for low, high, count in SETTINGS:
        parameters = RepetitionDetectionParams(high, low, count)
        saved = [(kept, len(tokens) - ends_at(tokens, parameters)) for kept, tokens in texts]
        hits, false = sum(n > 0 for _, n in saved), sum(n > 0 for kept, n in saved if kept)
        share = sum(n for _, n in saved) / total
        print(
            f"    {low:>4} to {high:<4}{count:>6}{hits:>14}{share:>15.1%}{false:>14} of {sum(k for k, _ in saved)}"
        )
    share, false = (
        sum(tokens for _, tokens in function_first) / total,
        sum(kept for kept, _ in function_first),
    )
    print(
        f"    tests begin with `def`: {len(function_first)} samples, {share:.1%} saved, {false} of kept samples ended"
    )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", nargs="+", type=Path)
for folder in parser.parse_args().runs:
    show(folder)
