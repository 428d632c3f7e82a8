"""The card of a trained model: what it was made from, how, and how it scored. README.md in its folder.

    python selfcodealign.py card --model runs/first/model-HASH [--scores runs/first/eval-HASH]

--scores is a folder of eval.py's. Which licence a model may have follows from those of its base model and of
its data. Neither is known here: the card says `unknown` unless `--license` gives one.
"""

import argparse
import hashlib
from pathlib import Path

from extras.export import origin_of, without_folders, writers
from parts.comparison import read_scored
from parts.folder import read_config
from parts.rows import BadInput, read_object, write_atomically

MADE_HERE = "<!-- made by selfcodealign.py card -->"
HIDDEN = ("out", "checkpoint_every")  # say nothing of the model


def describe(model: Path, scores: Path | None, license: str) -> str:
    """The text of a trained model's card. Raises BadInput."""
    from huggingface_hub import ModelCard, ModelCardData

    settings = read_object(model / "train.json")
    if not {"model", "data", "data_sha256"} <= settings.keys():
        raise BadInput(f"{model} is no folder of train.py: it has no train.json of ours")
    scored = read_scored(scores) if scores else None
    for result in scored["results"].values() if scored else ():
        if Path(result.get("model") or "").resolve() != model.resolve():
            raise BadInput(f"{scores} has scores of {result.get('model') or 'a file'}, not of {model}")
    shown = {key: without_folders(value) for key, value in settings.items() if key not in HIDDEN}
    data = Path(settings["data"])
    is_same = data.is_file() and hashlib.sha256(data.read_bytes()).hexdigest() == shown["data_sha256"]
    run = {key: without_folders(value) for key, value in read_config(data.parent).items()} if is_same else {}
    header = ModelCardData(
        base_model=None if Path(settings["model"]).is_dir() else settings["model"],
        license=license,
        language=["en"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["code", "python", "self-alignment"],
    )
    text = ModelCard.from_template(
        header,
        template_path=str(Path(__file__).parent / "pages" / "model.md"),
        mark=MADE_HERE,
        name=model.resolve().name,
        base=shown["model"],
        data=shown["data"],
        examples=sum(1 for _ in data.open("rb")) if is_same else None,
        origin=origin_of(run.get("baseline"), run.get("source", "others")),
        writers=writers(run, run.get("model", "a model")),
        scored=scored,
        settings=shown,
        license="unknown, nobody has said under which" if license == "unknown" else license,
    )
    return str(text) + "\n"


def main(argv: list[str]):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("selfcodealign.py card", description=__doc__, formatter_class=raw)
    parser.add_argument("--model", type=Path, required=True, help="the folder that train.py made")
    parser.add_argument("--scores", type=Path, help="its folder of eval.py's")
    parser.add_argument("--license", default="unknown", help="the hub's name of the model's licence")
    arguments = parser.parse_args(argv)
    card = arguments.model / "README.md"
    if card.exists() and MADE_HERE not in card.read_text(errors="replace"):
        raise BadInput(f"{card} is not ours: move it away first")
    write_atomically(card, describe(arguments.model, arguments.scores, arguments.license))
    print(f"model card: {card}")
