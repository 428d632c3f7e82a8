"""How much the tests of the kept examples test, and which samples of an instruction agree.

    python selfcodealign.py quality --out runs/first      of a drawn sample, into quality.json

Tests are measured by the mutants that they kill (parts/mutants.py). Samples of one instruction agree if each
one's code passes the other's tests.
"""

import collections
import heapq
from collections.abc import Hashable, Iterable, Iterator

from extras import report
from parts.code import program
from parts.folder import Folder, parse_folder, read_run
from parts.mutants import TIMEOUT, mutation_score, outcomes_of
from parts.rows import KeptRows, digest, progress, read_rows, write_json
from sandbox import Sandbox
from selfcodealign import code_and_tests

EXAMPLES = 100  # drawn
INSTRUCTIONS = 50  # drawn, of those with several passing samples


def agreement(
    sandbox: Sandbox, groups: Iterable[tuple[Hashable, list[tuple[str, str]]]]
) -> Iterator[tuple[Hashable, list[list[bool | None]]]]:
    """For each (key, samples): the key and matrix[i][j], whether the code of sample i passes the tests of
    sample j; as they are done.

    Samples are (code, tests). None where the sandbox gives no verdict.
    """
    crossed = (
        ((key, tuple(samples)), [program(code, tests) for code, _ in samples for _, tests in samples])
        for key, samples in groups
    )
    for (key, samples), outcomes in outcomes_of(sandbox, crossed):
        passed = {text: None if found == "error" else found == "passed" for text, found in outcomes.items()}
        yield key, [[passed[program(code, tests)] for _, tests in samples] for code, _ in samples]


def measure(run: Folder):
    """Write quality.json of a run: the quality of the tests of its final examples, and the agreement of its
    passing samples, each of a sample drawn by content."""
    run.time_for("quality")
    with Sandbox(run.config["workers"], TIMEOUT, run.config["memory_mb"]) as sandbox:
        measured = measure_tests(sandbox, run) | measure_agreement(sandbox, run)
    write_json(run.folder / "quality.json", measured)
    run.time_for(None)


def measure_tests(sandbox: Sandbox, run: Folder) -> dict:
    place = lambda row: digest("quality", row["id"])
    drawn = heapq.nsmallest(EXAMPLES, read_rows(run.path("sft")), key=place)
    examples = [(row["id"], *code_and_tests(row)) for row in drawn if row["tests"]]
    bar = progress(mutation_score(sandbox, examples), total=len(examples), desc="quality", unit="example")
    counts = [(score.mutants, score.killed) for _, score in bar]
    mutants, killed = map(sum, zip(*counts)) if counts else (0, 0)
    return {"examples": len(examples), "mutants": mutants, "killed": killed}


def measure_agreement(
    sandbox: Sandbox, run: Folder
) -> dict:  # of pairs: one sample's code and another one's tests
    stages, ids_of = run.config["stages"], collections.defaultdict(list)  # {task id: passing responses to it}
    stage, key, _ = stages.get("executions") or stages["selection"]
    for row in run.kept("executions"):
        ids_of[row["instruction_id"]].append(row[key])
    responses = KeptRows(run.path(stage))
    several = (task_id for task_id, ids in ids_of.items() if len(ids) > 1)
    drawn = heapq.nsmallest(INSTRUCTIONS, several, key=lambda task_id: digest("agreement", task_id))
    samples = ((one, [code_and_tests(responses[name]) for name in sorted(ids_of[one])]) for one in drawn)
    verdicts = []
    bar = progress(agreement(sandbox, samples), total=len(drawn), desc="agreement", unit="instruction")
    for _, matrix in bar:
        verdicts += [passed for i, row in enumerate(matrix) for j, passed in enumerate(row) if i != j]
    known = [passed for passed in verdicts if passed is not None]
    return {"instructions": len(drawn), "pairs": len(known), "agreeing": sum(known)}


def main(argv: list[str]):
    folder = parse_folder("quality", "how much the tests of a run's examples test", argv)
    measure(Folder(folder, read_run(folder)))
    report.show(folder)
