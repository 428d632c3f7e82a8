"""The structure: imports run one way, parts <- sandbox <- selfcodealign <- eval <- extras, and train.py stands alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT

RINGS = {"parts": 0, "sandbox": 1, "selfcodealign": 2, "eval": 3, "train": 3, "extras": 4}
SCRIPTS = ("selfcodealign", "sandbox", "train", "eval")


def files() -> dict[str, Path]:
    """{dotted name: file} of all Python outside tests and experiments."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "parts").rglob("*.py"), *(ROOT / "extras").rglob("*.py")]
    return {str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path for path in paths}


def imports_of(path: Path, names: set[str]) -> set[str]:
    """Those of `names` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
            same_ring = here == there and here in (RINGS["parts"], RINGS["extras"])
            assert there < here or same_ring, f"{name} imports {other}"
    TopologicalSorter(graph).prepare()  # raises on a circle


def test_torch_is_not_asked_for_gpus_before_vllm_is():
    """torch.cuda, asked first, starts CUDA in a process that vLLM then forks: no engine would start."""
    for name, path in files().items():
        attributes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        ]
        asked = {ast.unparse(node) for node in attributes} & {"torch.cuda", "torch.accelerator"}
        assert name in ("train", "extras.doctor") or not asked, f"{name} uses {asked}"


def test_budgets_are_printed(capsys):
    """For information: lines and bytes against the budgets."""
    sizes = {name: (path.read_text().count("\n"), path.stat().st_size) for name, path in files().items()}
    groups = {
        "the four scripts": SCRIPTS,
        "parts": [n for n in sizes if n.startswith("parts.")],
        "all": sizes,
    }
    groups["extras"] = [name for name in sizes if name.startswith("extras.")]
    with capsys.disabled():
        print()
        for name, members in [*((script, [script]) for script in SCRIPTS), *groups.items()]:
            lines, size = (sum(sizes[member][part] for member in members) for part in (0, 1))
            print(f"{name:18} {lines:6,} lines {size / 1000:7.1f} kB")
