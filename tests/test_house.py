"""The structure: imports run one way, parts <- sandbox <- selfcodealign <- eval <- extras <- experiments, and
train.py stands alone; main() alone loads extras; every group of files keeps to its budget of lines."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

RINGS = {"parts": 0, "sandbox": 1, "selfcodealign": 2, "eval": 3, "train": 3, "extras": 4, "experiments": 5}
BUDGETS = {  # lines
    "selfcodealign": 950,
    "sandbox": 400,
    "train": 790,
    "eval": 520,
    "parts": 3970,
    "extras": 1280,
    "experiments": 800,
}


def files() -> dict[str, Path]:
    """{dotted name: file} of all Python outside tests."""
    folders = (ROOT / ring for ring in ("parts", "extras", "experiments"))
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path for path in paths}


def parsed(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports_of(path: Path, names: set[str]) -> set[str]:
    """Those of `names` that a file imports, anywhere in it."""
    found = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names


def test_imports_run_one_way_and_in_no_circle():
    known = files()
    graph = {name: imports_of(path, set(known)) for name, path in known.items()}
    assert graph["train"] == set() and "train" not in graph["eval"]
    for name, found in graph.items():
        for other in found:
            here, there = RINGS[name.split(".")[0]], RINGS[other.split(".")[0]]
            same_ring = here == there and "." in name
            assert there < here or same_ring, f"{name} imports {other}"
    TopologicalSorter(graph).prepare()  # raises on a circle


def test_main_alone_loads_extras_by_name():
    """Whatever an `import` statement does not show needs the name of the folder as a text."""
    found = []
    for name, path in files().items():
        if RINGS[name.split(".")[0]] < RINGS["extras"]:
            for top in ast.parse(path.read_text()).body:
                texts = [node.value for node in ast.walk(top) if isinstance(node, ast.Constant)]
                if not isinstance(top, ast.Expr):  # the module's docstring
                    found += [
                        (name, top.name) for text in texts if "extras" in str(text).replace("extras/", "")
                    ]
    assert found == [("selfcodealign", "main")]


def test_torch_is_not_asked_for_gpus_before_vllm_is():
    """torch.cuda, asked first, starts CUDA in a process that vLLM then forks: no engine would start."""
    for name, path in files().items():
        attributes = [node for node in parsed(path) if isinstance(node, ast.Attribute)]
        asked = {ast.unparse(node) for node in attributes} & {"torch.cuda", "torch.accelerator"}
        assert name in ("train", "extras.doctor") or not asked, f"{name} uses {asked}"


def test_no_function_is_longer_than_fifty_lines():
    for name, path in files().items():
        for node in parsed(path):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 50 or name == "train", f"{name}: {node.name} has {lines} lines"


def lines_of(group: str) -> int:
    return sum(path.read_text().count("\n") for name, path in files().items() if name.split(".")[0] == group)


@pytest.mark.parametrize("group", BUDGETS)
def test_lines_keep_to_their_budget(group):
    assert lines_of(group) <= BUDGETS[group]
