"""Prompts: the few-shot examples of the folder prompts, and what each step puts before the model (paper 2.2, 2.3, B).

A prompt is the step's system text, the numbered examples, and the opening of one more, which the model is to finish.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from rows import BadInput

CATEGORIES = ("function", "class", "program")
DIFFICULTIES = ("easy", "medium", "hard")
PROMPTS = Path(__file__).parent / "prompts"


def python_code(text: str) -> str:
    """The contents of all fenced python blocks of `text`, joined; empty if there is none."""
    return "\n\n".join(re.findall(r"^```(?:python|py)[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).strip()


def code_lines(code: str) -> list[str]:
    """The lines as the parser counts them: `splitlines` would split at a form feed, too."""
    return re.split(r"\r\n|\r|\n", code)


def runnable_code(response: str) -> str:
    """The code of a response as it is executed: without a `__main__` block where it reads `input`, which the sandbox does not give."""
    code = python_code(response)
    if re.search(r"\binput\s*\(", code):
        lines = code_lines(code)
        for node in reversed(ast.parse(code).body):
            if is_main_block(node):
                del lines[node.lineno - 1 : node.end_lineno]
        code = "\n".join(lines)
    return code


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test))


def program(code: str, tests: str) -> str:
    """What the sandbox runs: the code, then its tests."""
    return f"{code}\n\n{tests}\n"


@dataclass(frozen=True)
class Example:
    """One few-shot example: a file of prompts/examples. `code`, `response` and `tests` keep their fences."""

    name: str
    code: str
    properties: dict[str, str]
    instruction: str
    response: str
    tests: str


SECTIONS = ("Code", "Properties", "Instruction", "Response", "Tests")


def load_examples(folder: Path) -> list[Example]:
    paths = sorted(folder.glob("*.md"))
    if not paths:
        raise BadInput(f"no few-shot examples (*.md) in {folder}")
    return [parse_example(path) for path in paths]


def parse_example(path: Path) -> Example:
    """Read one example; a malformed one is BadInput that names file and line."""
    sections, started, fenced, name = {}, {}, False, None
    lines = path.read_text().splitlines()
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
    if list(properties) != ["category", "language", "difficulty", "concepts"]:
        raise BadInput(f"{path}:{started['Properties']}: Properties must be category, language, difficulty and concepts, a line each")
    if properties["category"] not in CATEGORIES or properties["difficulty"] not in DIFFICULTIES:
        raise BadInput(f"{path}:{started['Properties']}: unknown category or difficulty")
    return Example(path.stem, text["Code"], properties, text["Instruction"], text["Response"], text["Tests"])


def system_text(step: str) -> str:
    return (PROMPTS / f"{step}.md").read_text().strip()


def write_properties(properties: dict[str, str], keys: tuple[str, ...] = ("concepts", "language", "difficulty", "category")) -> str:
    """A line each; the category, which decides what the task begins with, comes last, where small models heed it more often."""
    return "\n".join(f"{key}: {properties[key]}" for key in keys)


def few_shot_prompt(system: str, shots: list[str], opening: str) -> str:
    """The system text, the numbered examples, and the opening of the one that the model is to finish."""
    return "\n\n".join([system, *(f"### Example {number}\n{text}" for number, text in enumerate([*shots, opening], 1))])


def concepts_prompt(deck: list[Example], seed: dict) -> str:
    shots = [f"[Code]\n{example.code}\n\n[Concepts]\n{example.properties['concepts']}" for example in deck]
    return few_shot_prompt(system_text("concepts"), shots, f"[Code]\n```python\n{seed['code']}\n```\n\n[Concepts]\n")


def instruction_prompt(deck: list[Example], properties: dict[str, str]) -> str:
    shots = [f"[Properties]\n{write_properties(example.properties)}\n\n[Instruction]\n{example.instruction}" for example in deck]
    return few_shot_prompt(system_text("instructions"), shots, f"[Properties]\n{write_properties(properties)}\n\n[Instruction]\n")


def direct_prompt(deck: list[Example], seed: dict, properties: dict[str, str]) -> str:
    """Recipe snippet-to-instruction: the code itself instead of its concepts."""

    def opening(code: str, properties: dict[str, str]) -> str:
        return f"[Code]\n{code}\n\n[Properties]\n{write_properties(properties, ('language', 'difficulty', 'category'))}\n\n[Instruction]\n"

    shots = [opening(example.code, example.properties) + example.instruction for example in deck]
    return few_shot_prompt(system_text("direct"), shots, opening(f"```python\n{seed['code']}\n```", properties))


def oss_prompt(deck: list[Example], seed: dict) -> str:
    """Recipe oss-instruct: problem and solution at once."""
    shots = [f"[Code]\n{example.code}\n\n[Problem]\n{example.instruction}\n\n[Solution]\n{example.response}" for example in deck]
    return few_shot_prompt(system_text("oss"), shots, f"[Code]\n```python\n{seed['code']}\n```\n\n[Problem]\n")


CHANGES = (
    "add one rule that the result must obey", "replace an everyday requirement by a less usual one",
    "ask for a better bound on time or memory", "let the solution need one more step of thought",
)  # fmt: skip


def evolve_prompt(instruction: str, change: str) -> str:
    """Recipe evol-instruct, one step. The text has an example of each of CHANGES."""
    return f"{system_text('evolve')}\n\n### Example 5\n[Task]\n{instruction}\n\n[Change]\n{change}\n\n[New task]\n"


@dataclass(frozen=True)
class Layout:
    """How an instruction, its response and its tests are told apart in a prompt and in what the model writes."""

    shot: str
    boundary: str  # a regular expression: where the response ends and the tests begin
    marks: tuple[str, ...]  # that stand nowhere else
    stop: tuple[str, ...]


LAYOUTS = {
    "tags": Layout(
        shot="<instruction>\n{instruction}\n</instruction>\n\n<response>\n{response}\n</response>\n\n<tests>\n{tests}\n</tests>",
        boundary=r"\s*</response>\s*<tests>\s*",
        marks=("</response>", "<tests>"),
        stop=("</tests>", "\n### Example"),
    ),
    "headings": Layout(
        shot="#### Instruction\n{instruction}\n\n#### Response\n{response}\n\n#### Tests\n{tests}",
        boundary=r"\s*^#### Tests[ \t]*\n",
        marks=("#### Response", "#### Tests"),
        stop=("\n#### Instruction", "\n### Example"),
    ),
}


def response_prompt(deck: list[Example], instruction: str, layout: Layout) -> str:
    shots = [layout.shot.format(instruction=example.instruction, response=example.response, tests=example.tests) for example in deck]
    opening = layout.shot.partition("{response}")[0].format(instruction=instruction)
    return few_shot_prompt(system_text("responses"), shots, opening)


def judge_prompt(seed: dict) -> str:
    """The judge's text ends with seven judged examples; the function to judge is the eighth."""
    return f"{system_text('judge')}\n\n### Example 8\n[Code]\n```python\n{seed['code']}\n```\n\n[Sufficient]\n"
