"""What another library learns of an export, against train.py. See works_with.sh, which installs the libraries.

    python tests/works_with.py {trl,llama-factory,axolotl} EXPORT MODEL     EXPORT: of --format messages or preference

One line: how many examples, and how many tokens are learned of them, of a pair those of the chosen answer. Exit
status 0 only if each example's are train.py's, with at most one token after them: the line break that a chat
template writes behind the end of text, which no generation reaches.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train


def trl(export: Path, model: str, scratch: str, pairs: bool) -> list[list[int]]:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    data = load_dataset("json", data_files=str(export / "train.jsonl"), split="train")
    kind, settings = (DPOTrainer, DPOConfig) if pairs else (SFTTrainer, SFTConfig)
    settings = settings(scratch, max_length=None, use_cpu=True, bf16=False, report_to="none")
    made = kind(model, args=settings, train_dataset=data).train_dataset
    return [row["chosen_ids"] for row in made] if pairs else [row["labels"] for row in made]


def llama_factory(export: Path, model: str, scratch: str, pairs: bool) -> list[list[int]]:
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # of what it needs to train, and this does not
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    where = {"model_name_or_path": model, "dataset_dir": str(export), "output_dir": scratch}
    what = {
        "stage": "dpo" if pairs else "sft",
        "do_train": True,
        "dataset": "selfcodealign",
        "cutoff_len": 100_000,
    }
    model_settings, data_settings, settings, *_ = get_train_args(where | what)
    loaded = load_tokenizer(model_settings)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_settings)
    stage = "rm" if pairs else "sft"
    made = get_dataset(template, model_settings, data_settings, settings, stage, **loaded)
    return [row["chosen_labels" if pairs else "labels"] for row in made["train_dataset"]]


def axolotl(export: Path, model: str, scratch: str, pairs: bool) -> list[list[int]]:
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    settings = DictDefault({"sequence_len": 100_000, "chat_template": "tokenizer_default"})
    data = DictDefault({"path": str(export), "type": "chat_template", "field_messages": "messages"})
    strategy = load(AutoTokenizer.from_pretrained(model), settings, ds_cfg=data)
    rows = map(json.loads, (export / "train.jsonl").read_bytes().splitlines())
    return [strategy.tokenize_prompt({"messages": row["messages"]})["labels"] for row in rows]


LIBRARIES = {"trl": trl, "llama-factory": llama_factory, "axolotl": axolotl}


def main(library: str, export: Path, model: str) -> int:
    from transformers import AutoTokenizer

    rows = list(map(json.loads, (export / "train.jsonl").read_bytes().splitlines()))
    pairs = "chosen" in rows[0]
    with tempfile.TemporaryDirectory() as scratch:
        labels = LIBRARIES[library](export, model, scratch, pairs)
    tokenizer, answer = AutoTokenizer.from_pretrained(model), "chosen" if pairs else "completion"
    chats = [(row["prompt"][0]["content"], row[answer][0]["content"]) for row in rows]
    ours = [train.encode_example(tokenizer, *chat) for chat in chats]
    wanted = [ids[prompt_length:] for ids, prompt_length in ours]
    learned = [[label for label in row if label != -100] for row in labels]
    name = library.replace("-", "")
    print(
        f"{name} {version(name)}, transformers {version('transformers')}: {len(learned)} examples,", end=" "
    )
    print(f"{sum(map(len, learned))} tokens learned, by train.py {train.count_targets(ours)}")
    tails = {tokenizer.decode(row[len(ids) :]) for row, ids in zip(learned, wanted)}
    same = len(learned) == len(ours) and all(row[: len(ids)] == ids for row, ids in zip(learned, wanted))
    return 0 if same and (tails == {""} or len(tails) == 1 and not "".join(tails).strip()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
