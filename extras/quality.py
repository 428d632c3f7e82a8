"""How much the tests of the kept examples test, and which samples of an instruction agree.

    python selfcodealign.py quality --out runs/first      of a drawn sample, into quality.json

A mutant is the response's code with one small change: another operator or constant, a condition negated, a
result or a step left out. Tests kill it if the code no longer passes them; a mutant that runs over the time
limit is killed, too, and counted once more as looping. Some mutants are no different from the code in what
they do; no program can tell these, so they count as survivors and the share of killed mutants is at most too
low. Changes of annotations, docstrings and `__main__` blocks, which surely make no difference, are not made.

Samples of one instruction agree if each one's code passes the other's tests; `--prefer consensus` keeps the
one with which most agree.
"""

import ast
import collections
import copy
import heapq
import json
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from parts.code import is_main_block, program, python_code, runnable_code
from parts.folder import parse_folder
from parts.rows import Appender, digest, progress, read_rows, row_id, write_atomically
from sandbox import Sandbox

EXAMPLES, MUTANTS = 100, 10  # drawn for the report, and of each example
INSTRUCTIONS = 50  # drawn for the report, of those with several passing samples
TIMEOUT = 3.0  # seconds for a mutant

# ---------------------------------------------------------------------------------------------------- mutants

OTHER_OPERATOR = {  # of the classes of `ast`, by name
    getattr(ast, one): getattr(ast, other)
    for one, other in (
        pair.split(":")
        for pair in """
            Add:Sub Sub:Add Mult:Add Div:Mult FloorDiv:Mult Mod:FloorDiv Pow:Mult BitAnd:BitOr BitOr:BitAnd
            BitXor:BitAnd LShift:RShift RShift:LShift Lt:LtE LtE:Lt Gt:GtE GtE:Gt Eq:NotEq NotEq:Eq In:NotIn
            NotIn:In Is:IsNot IsNot:Is And:Or Or:And
        """.split()
    )
}


def mutants(code: str, limit: int, seed: int) -> list[str]:
    """At most `limit` different mutants of the code, drawn with the seed. Raises SyntaxError."""
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if not is_main_block(node)]
    try:
        made = dict.fromkeys(all_mutants(tree, tree))
        made.pop(ast.unparse(tree), None)
    # Nested too deep to be written again, or with what Python 3.11 cannot write in an f-string
    except (RecursionError, ValueError):
        return []
    return sorted(made, key=lambda mutant: digest(seed, "mutant", mutant))[:limit]


def all_mutants(tree: ast.Module, node: ast.AST) -> Iterator[str]:
    """The text of `tree` with one change at or below `node`; the tree is whole again at the end."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment", "decorator_list", "format_spec"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or (
                isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            ):
                continue
            for changed in changes(child):
                put(node, field, place, changed)
                yield ast.unparse(tree)
            put(node, field, place, child)
            yield from all_mutants(tree, child)


def put(node: ast.AST, field: str, place: int | None, child: ast.AST):
    if place is None:
        setattr(node, field, child)
    else:
        getattr(node, field)[place] = child


def changes(node: ast.AST) -> list[ast.AST]:
    """What one small change can make of the node."""

    def but(**news) -> ast.AST:
        changed = copy.copy(node)
        vars(changed).update(news)
        return changed

    match node:
        case ast.Compare():
            return [
                but(ops=[*node.ops[:n], OTHER_OPERATOR[type(op)](), *node.ops[n + 1 :]])
                for n, op in enumerate(node.ops)
            ]
        case ast.BinOp() | ast.BoolOp() if type(node.op) in OTHER_OPERATOR:
            return [but(op=OTHER_OPERATOR[type(node.op)]())]
        case ast.AugAssign() if type(node.op) in OTHER_OPERATOR:
            return [but(op=OTHER_OPERATOR[type(node.op)]()), ast.Pass()]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [node.operand]
        case ast.If() | ast.While() | ast.IfExp():
            return [but(test=ast.UnaryOp(ast.Not(), node.test))]
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            return [but(value=ast.Constant(None))]
        case ast.Expr():
            return [ast.Pass()]
        case ast.Break():
            return [ast.Continue()]
        case ast.Continue():
            return [ast.Break()]
        case ast.Constant(value=bool() as value):
            return [ast.Constant(not value)]
        case ast.Constant(value=int() | float() as value):
            return [ast.Constant(value + 1)]
        case ast.Constant(value=str() as value):
            return [ast.Constant("" if value else "mutant")]
    return []


class Score(NamedTuple):
    mutants: int  # with a verdict; 0 where the code itself does not pass its tests
    killed: int
    looping: int  # of the killed: over the time limit


def mutation_score(
    sandbox: Sandbox, examples: Iterable[tuple[str, str, str]], limit: int = MUTANTS
) -> Iterator[tuple[str, Score]]:  # fmt: skip
    """For each (id, code, tests): the id and how many mutants of the code its tests kill, in the order given,
    as they are done."""

    def programs() -> Iterator[tuple[str, str]]:
        for example_id, code, tests in examples:
            versions = [code, *mutants(code, limit, 0)]
            waiting[example_id] = [len(versions), []]
            for number, version in enumerate(versions):
                yield (example_id, number), program(version, tests)

    waiting = {}  # id: [programs, (number, outcome) of those that are done]; the sandbox's thread adds to it
    for (example_id, number), result in sandbox.map(programs()):
        waiting[example_id][1].append((number, result.outcome))
        while waiting and len(waiting[first := list(waiting)[0]][1]) == waiting[first][0]:
            yield first, count_killed(waiting.pop(first)[1])


def count_killed(outcomes: list[tuple[int, str]]) -> Score:
    if (0, "passed") not in outcomes:
        return Score(0, 0, 0)
    verdicts = [outcome for number, outcome in outcomes if number and outcome != "error"]
    return Score(len(verdicts), sum(outcome != "passed" for outcome in verdicts), verdicts.count("timeout"))


def count_asserts(tests: str) -> tuple[int, int]:
    """(asserts, different asserts) in the text of the tests, unittest's methods included."""
    asserts = [
        node
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr.startswith("assert")
        )
    ]
    try:
        return len(asserts), len(set(map(ast.unparse, asserts)))
    except (RecursionError, ValueError):  # cannot be written again: as they stand
        return len(asserts), len({ast.get_source_segment(tests, node) for node in asserts})


# -------------------------------------------------------------------------------------------------- agreement


def agreement(
    sandbox: Sandbox, groups: Iterable[tuple[Hashable, list[tuple[str, str]]]]
) -> Iterator[tuple[Hashable, list[list[bool | None]]]]:
    """For each (key, samples): the key and matrix[i][j], whether the code of sample i passes the tests of
    sample j; as they are done.

    Samples are (code, tests). n * n programs, equal ones run once. None where the sandbox gives no verdict.
    """
    waiting = {}  # key: [samples, distinct programs, {program: passed}]

    def programs() -> Iterator[tuple[tuple, str]]:
        for key, samples in groups:
            distinct = {program(code, tests) for code, _ in samples for _, tests in samples}
            waiting[key] = [samples, len(distinct), {}]
            for text in distinct:
                yield (key, text), text

    for (key, text), result in sandbox.map(programs()):
        samples, expected, passed = waiting[key]
        passed[text] = None if result.outcome == "error" else result.outcome == "passed"
        if len(passed) == expected:
            del waiting[key]
            yield key, [[passed[program(code, tests)] for _, tests in samples] for code, _ in samples]


def consensus(matrix: list[list[bool]], ids: list[str]) -> str | None:
    """The sample to keep, of those whose code passes their own tests; None if there is none.

    A sibling agrees with a sample if each one's code passes the other's tests. The sample with the most that
    agree; among equals the one with the most passes, its code on siblings' tests and siblings' codes on its
    own together; then the smallest id. Agreement comes first because tests that assert next to nothing are
    passed by all, but do not help their own code to pass anything.
    """

    def support(i: int) -> tuple[int, int]:
        siblings = [j for j in range(len(ids)) if j != i]
        return sum(bool(matrix[i][j] and matrix[j][i]) for j in siblings), sum(
            bool(matrix[i][j]) + bool(matrix[j][i]) for j in siblings
        )

    passing = [i for i in range(len(ids)) if matrix[i][i]]
    return ids[min(passing, key=lambda i: (*(-count for count in support(i)), ids[i]))] if passing else None


# --------------------------------------------------------------------------------------------------- of a run


def agreed_responses(run, candidates: list[str], origins) -> dict[str, str]:
    """{task id: its passing response that most others agree with}, for tasks with several.

    Each one's code runs with each one's tests. Verdicts are cached in agreement.jsonl, so that running again
    gives the same choice.
    """
    siblings, task_of = collections.defaultdict(list), {}
    for response_id in candidates:
        task_of[response_id] = origins.task(origins.responses[response_id])["id"]
        siblings[task_of[response_id]].append(response_id)
    groups = {row_id("agreement", *sorted(ids)): sorted(ids) for ids in siblings.values() if len(ids) > 1}

    def samples(response_id: str) -> tuple[str, str]:
        row = origins.responses[response_id]
        return runnable_code(row["response"]), python_code(row["tests"])

    with Appender(run.path("agreement")) as file, run.sandbox() as sandbox:
        waiting = [key for key in groups if key not in file.ids]
        matrices = agreement(sandbox, ((key, list(map(samples, groups[key]))) for key in waiting))
        for key, matrix in progress(matrices, total=len(waiting), desc="consensus", unit="instruction"):
            if all(passed is not None for row in matrix for passed in row):
                file.append({"id": key, "responses": groups[key], "passed": matrix})
    verdicts = (row for row in read_rows(run.path("agreement")) if row["id"] in groups)
    chosen = (consensus(row["passed"], row["responses"]) for row in verdicts)
    return {task_of[response_id]: response_id for response_id in chosen if response_id}


def measure(run):
    """Write quality.json of a run: the quality of the tests of its final examples, and the agreement of its
    passing samples, each of a sample drawn by content."""
    run.time_for("quality")
    with Sandbox(run.settings.workers, TIMEOUT, run.settings.memory_mb) as sandbox:
        measured = measure_tests(sandbox, run.folder) | measure_agreement(sandbox, several_passing(run))
    write_atomically(run.folder / "quality.json", json.dumps(measured, indent=2))
    run.time_for(None)


def measure_tests(sandbox: Sandbox, folder: Path) -> dict:
    rows = heapq.nsmallest(
        EXAMPLES, read_rows(folder / "sft.jsonl"), key=lambda row: digest("quality", row["id"])
    )
    examples = [
        (row["id"], runnable_code(row["response"]), python_code(row["tests"])) for row in rows if row["tests"]
    ]
    asserts = [count_asserts(tests) for _, _, tests in examples]
    bar = progress(mutation_score(sandbox, examples), total=len(examples), desc="quality", unit="example")
    scores = [score for _, score in bar if score.mutants]
    return {
        "examples": len(examples),
        "asserts": sum(count for count, _ in asserts),
        "different_asserts": sum(different for _, different in asserts),
        "examples_with_mutants": len(scores),
        "mutants": sum(score.mutants for score in scores),
        "killed": sum(score.killed for score in scores),
        "looping": sum(score.looping for score in scores),
        "examples_that_kill_all": sum(score.killed == score.mutants for score in scores),
        "examples_that_kill_none": sum(score.killed == 0 for score in scores),
    }


def measure_agreement(sandbox: Sandbox, groups: dict[str, list[tuple[str, str]]]) -> dict:
    """`groups`: {task id: (code, tests) of its passing samples}."""
    verdicts = []
    matrices = agreement(sandbox, groups.items())
    for _, matrix in progress(matrices, total=len(groups), desc="agreement", unit="instruction"):
        verdicts += [passed for i, row in enumerate(matrix) for j, passed in enumerate(row) if i != j]
    known = [passed for passed in verdicts if passed is not None]
    return {
        "instructions": len(groups),  # with several passing samples
        "pairs": len(known),  # of a passing sample's code and the tests of another one
        "agreeing": sum(known),  # the code passes them
    }


def several_passing(run) -> dict[str, list[tuple[str, str]]]:
    """{task id: (code, tests) of its passing samples} of a drawn sample of the tasks that have several."""
    origins, ids_of = run.origins(), collections.defaultdict(list)
    for row in read_rows(run.path("executions")):
        if row["outcome"] == "passed":
            ids_of[origins.task(origins.responses[row["response_id"]])["id"]].append(row["response_id"])
    several = (task_id for task_id, ids in ids_of.items() if len(ids) > 1)
    drawn = heapq.nsmallest(INSTRUCTIONS, several, key=lambda task_id: digest("agreement", task_id))
    responses = {task_id: [origins.responses[key] for key in ids_of[task_id]] for task_id in drawn}
    return {
        task_id: [(runnable_code(row["response"]), python_code(row["tests"])) for row in found]
        for task_id, found in responses.items()
    }


def main(words: list[str]):
    import selfcodealign

    folder = parse_folder("quality", "how much the tests of a run's examples test", words)
    measure(selfcodealign.open_run(folder, {}, {}))
    selfcodealign.extra("report").show(folder)
