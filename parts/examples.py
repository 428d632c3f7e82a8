"""Few-shot examples: the Markdown files of a folder, each with five sections in a fixed order."""

from dataclasses import dataclass
from pathlib import Path

from parts.code import python_code
from parts.rows import BadInput

CATEGORIES = ("function", "class", "program")
DIFFICULTIES = ("easy", "medium", "hard")
SECTIONS = ("Code", "Properties", "Instruction", "Response", "Tests")


@dataclass(frozen=True)
class Example:
    """A few-shot example, a file of prompts/examples. `code`, `response` and `tests` keep their fences."""

    name: str
    code: str
    properties: dict[str, str]  # category, language, difficulty, concepts
    instruction: str
    response: str
    tests: str


def load_examples(folder: Path) -> list[Example]:
    paths = sorted(folder.glob("*.md"))
    if not paths:
        raise BadInput(f"no few-shot examples (*.md) in {folder}")
    return [parse_example(path) for path in paths]


def parse_example(path: Path) -> Example:
    """Read one example; BadInput names file and line of a malformed one."""
    sections, started, fenced, name = {}, {}, False, None
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            fenced = not fenced
        if line.startswith("## ") and not fenced:
            expected = SECTIONS[len(sections)] if len(sections) < len(SECTIONS) else "the end of the file"
            name = line.removeprefix("## ").strip()
            if name != expected:
                raise BadInput(f"{path}:{number}: found section {name!r} where {expected} belongs")
            sections[name], started[name] = [], number
        elif name is not None:
            sections[name].append(line)
        elif line.strip():
            raise BadInput(f"{path}:{number}: text before the first section")
    if fenced or len(sections) < len(SECTIONS):
        missing = "a closing ``` fence" if fenced else f"section {SECTIONS[len(sections)]}"
        raise BadInput(f"{path}:{len(lines)}: {missing} is missing")
    text = {name: "\n".join(body).strip() for name, body in sections.items()}
    for name in SECTIONS:
        if not text[name]:
            raise BadInput(f"{path}:{started[name]}: section {name} is empty")
        if name in ("Code", "Response", "Tests") and not python_code(text[name]):
            raise BadInput(f"{path}:{started[name]}: section {name} has no ```python block")
    properties = dict(line.split(": ", 1) for line in text["Properties"].splitlines() if ": " in line)
    where = f"{path}:{started['Properties']}"
    if list(properties) != ["category", "language", "difficulty", "concepts"]:
        raise BadInput(f"{where}: Properties must be category, language, difficulty, concepts, a line each")
    if properties["category"] not in CATEGORIES or properties["difficulty"] not in DIFFICULTIES:
        raise BadInput(f"{where}: unknown category or difficulty")
    return Example(path.stem, text["Code"], properties, text["Instruction"], text["Response"], text["Tests"])
