"""What another library learns of an export, against train.py. See works_with.sh, which installs the libraries.

    python tests/works_with.py {trl,llama-factory} EXPORT MODEL     EXPORT: of --format messages

One line: how many examples, and how many tokens are learned of them. Exit status 0 only if each example's are
train.py's, with at most one token after them: the line break that a chat template writes behind the end of
text, which no generation reaches.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train


def trl(export: Path, model: str, scratch: str) -> list[dict]:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    data = load_dataset("json", data_files=str(export / "train.jsonl"), split="train")
    settings = SFTConfig(scratch, max_length=None, use_cpu=True, bf16=False, report_to="none")
    return list(SFTTrainer(model, args=settings, train_dataset=data).train_dataset)


def llama_factory(export: Path, model: str, scratch: str) -> list[dict]:
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # of what it needs to train, and this does not
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    where = {"model_name_or_path": model, "dataset_dir": str(export), "output_dir": scratch}
    what = {"stage": "sft", "do_train": True, "dataset": "selfcodealign", "cutoff_len": 100_000}
    model_settings, data_settings, settings, *_ = get_train_args(where | what)
    loaded = load_tokenizer(model_settings)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_settings)
    made = get_dataset(template, model_settings, data_settings, settings, "sft", **loaded)
    return list(made["train_dataset"])


LIBRARIES = {"trl": trl, "llama-factory": llama_factory}


def main(library: str, export: Path, model: str) -> int:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        rows = LIBRARIES[library](export, model, scratch)
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = (export / "train.jsonl").read_bytes().splitlines()
    chats = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    ours = [train.encode_example(tokenizer, *chat) for chat in chats]
    wanted = [ids[prompt_length:] for ids, prompt_length in ours]
    learned = [[label for label in row["labels"] if label != -100] for row in rows]
    name = library.replace("-", "")
    print(f"{name} {version(name)}, transformers {version('transformers')}: {len(rows)} examples,", end=" ")
    print(f"{sum(map(len, learned))} tokens learned, by train.py {train.count_targets(ours)}")
    tails = {tokenizer.decode(row[len(ids) :]) for row, ids in zip(learned, wanted)}
    same = len(rows) == len(ours) and all(row[: len(ids)] == ids for row, ids in zip(learned, wanted))
    return 0 if same and (tails == {""} or len(tails) == 1 and not "".join(tails).strip()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
