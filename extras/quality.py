"""How much the tests of the kept examples test, and which samples of an instruction agree.

    python selfcodealign.py quality --out runs/first      of a drawn sample, into quality.json

A mutant is the response's code with one small change: another operator or constant, a condition negated, a
result or a step left out. Tests kill it if the code no longer passes them, or runs over the time limit. Some
mutants are no different from the code in what they do; no program can tell these, so they count as survivors
and the share of killed mutants is at most too low. Changes of annotations, docstrings and `__main__` blocks,
which surely make no difference, are not made.

Samples of one instruction agree if each one's code passes the other's tests.
"""

import ast
import collections
import copy
import heapq
import json
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

import selfcodealign
from parts.code import is_main_block, program, python_code, runnable_code
from parts.folder import parse_folder
from parts.rows import Appender, KeptRows, digest, progress, read_rows, row_id, write_atomically
from sandbox import Sandbox, SandboxError

EXAMPLES, MUTANTS = 100, 10  # drawn, and of each example
INSTRUCTIONS = 50  # drawn, of those with several passing samples
TIMEOUT = 3.0  # seconds for a mutant

# ---------------------------------------------------------------------------------------------------- mutants

OTHER_OPERATOR = {  # of the classes of `ast`
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
MAKE_NO_DIFFERENCE = ("annotation", "returns", "type_comment", "decorator_list", "format_spec")


def mutants(code: str, limit: int) -> list[str]:
    """At most `limit` different mutants of the code, always the same. Raises SyntaxError."""
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if not is_main_block(node)]
    try:
        made = set(all_mutants(tree, tree)) - {ast.unparse(tree)}
    # Nested too deep to be written again, or with what Python 3.11 cannot write in an f-string
    except (RecursionError, ValueError):
        return []
    return heapq.nsmallest(limit, made, key=lambda mutant: digest(0, "mutant", mutant))


def all_mutants(tree: ast.Module, node: ast.AST) -> Iterator[str]:
    """The text of `tree` with one change at or below `node`; the tree is whole again at the end."""
    for field, value in ast.iter_fields(node):
        places = [(value, n) for n in range(len(value))] if isinstance(value, list) else [(vars(node), field)]
        for holder, key in places:
            child = holder[key]
            is_text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if field in MAKE_NO_DIFFERENCE or is_text or not isinstance(child, ast.AST):
                continue
            for changed in changes(child):
                holder[key] = changed
                yield ast.unparse(tree)
            holder[key] = child
            yield from all_mutants(tree, child)


def changes(node: ast.AST) -> list[ast.AST]:
    """What one small change can make of the node."""

    def but(**news) -> ast.AST:
        changed = copy.copy(node)
        vars(changed).update(news)
        return changed

    match node:
        case ast.Compare():
            others = [OTHER_OPERATOR[type(op)]() for op in node.ops]
            return [but(ops=[*node.ops[:n], op, *node.ops[n + 1 :]]) for n, op in enumerate(others)]
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
    errors: int  # programs without a verdict


def mutation_score(
    sandbox: Sandbox, examples: Iterable[tuple[Hashable, str, str]], limit: int = MUTANTS
) -> Iterator[tuple[Hashable, Score]]:
    """For each (key, code, tests): the key and how many mutants of the code its tests kill."""
    versions = ((key, [code, *mutants(code, limit)], tests) for key, code, tests in examples)
    groups = ((key, [program(code, tests) for code in codes]) for key, codes, tests in versions)
    for key, outcomes in outcomes_of(sandbox, groups):
        of_code, *verdicts = outcomes.values()
        errors = [of_code, *verdicts].count("error")
        verdicts = [verdict for verdict in verdicts if verdict != "error"] if of_code == "passed" else []
        yield key, Score(len(verdicts), len(verdicts) - verdicts.count("passed"), errors)


def outcomes_of(
    sandbox: Sandbox, groups: Iterable[tuple[Hashable, Iterable[str]]]
) -> Iterator[tuple[Hashable, dict[str, str]]]:
    """For each (key, programs): the key and {program: outcome}, as soon as all are done, in no order.
    Equal programs of a group run once."""
    waiting = {}  # the sandbox's thread adds to it

    def programs() -> Iterator[tuple[tuple[Hashable, str], str]]:
        for key, texts in groups:
            waiting[key] = dict.fromkeys(texts)
            for text in waiting[key]:
                yield (key, text), text

    for (key, text), result in sandbox.map(programs()):
        waiting[key][text] = result.outcome
        if None not in waiting[key].values():
            yield key, waiting.pop(key)


def weakly_tested(run, response_ids: list[str]) -> dict[str, dict]:
    """{response id: its reject} of those whose tests kill less than --min-killed of their code's mutants.
    Those without a mutant are among them, and those that take longer than TIMEOUT: nothing shows what their
    tests test.

    Scores are kept in mutants.jsonl. Raises SandboxError where the sandbox gives no verdict.
    """
    least = run.settings.min_killed
    limits = run.settings.workers, TIMEOUT, run.settings.memory_mb
    responses = KeptRows(run.path(run.answers[0]))
    with Appender(run.path("mutants")) as file, Sandbox(*limits) as sandbox:
        waiting = [one for one in response_ids if row_id("mutants", one) not in file.ids]
        examples = ((one, *parts_of(responses[one])) for one in waiting)
        scores = mutation_score(sandbox, examples)
        for one, score in progress(scores, total=len(waiting), desc="mutants", unit="response"):
            if not score.errors:
                counts = {"mutants": score.mutants, "killed": score.killed}
                file.append({"id": row_id("mutants", one), "response_id": one} | counts)
    scores = {row["response_id"]: row for row in read_rows(run.path("mutants"))}
    if missing := len(set(response_ids) - scores.keys()):
        raise SandboxError(f"mutants of {missing} responses got no verdict; the same command tries again")
    found = ((one, scores[one]) for one in response_ids)
    weak = (one for one, row in found if not row["mutants"] or row["killed"] < least * row["mutants"])
    return dict.fromkeys(weak, {"reject": "weak_tests"})


# -------------------------------------------------------------------------------------------------- agreement


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


# --------------------------------------------------------------------------------------------------- of a run


def parts_of(row: dict) -> tuple[str, str]:
    """(code, tests) of a response or an example."""
    return runnable_code(row["response"]), python_code(row["tests"])


def measure(run):
    """Write quality.json of a run: the quality of the tests of its final examples, and the agreement of its
    passing samples, each of a sample drawn by content."""
    run.time_for("quality")
    with Sandbox(run.settings.workers, TIMEOUT, run.settings.memory_mb) as sandbox:
        measured = measure_tests(sandbox, run) | measure_agreement(sandbox, run)
    write_atomically(run.folder / "quality.json", json.dumps(measured, indent=2))
    run.time_for(None)


def measure_tests(sandbox: Sandbox, run) -> dict:
    place = lambda row: digest("quality", row["id"])
    drawn = heapq.nsmallest(EXAMPLES, read_rows(run.path("sft")), key=place)
    examples = [(row["id"], *parts_of(row)) for row in drawn if row["tests"]]
    bar = progress(mutation_score(sandbox, examples), total=len(examples), desc="quality", unit="example")
    counts = [(score.mutants, score.killed) for _, score in bar]
    mutants, killed = map(sum, zip(*counts)) if counts else (0, 0)
    return {"examples": len(examples), "mutants": mutants, "killed": killed}


def measure_agreement(sandbox: Sandbox, run) -> dict:  # of pairs: one sample's code and another one's tests
    (stage, key), ids_of = run.answers, collections.defaultdict(list)  # {task id: passing responses to it}
    for row in run.kept("executions"):
        ids_of[row["instruction_id"]].append(row[key])
    responses = KeptRows(run.path(stage))
    several = (task_id for task_id, ids in ids_of.items() if len(ids) > 1)
    drawn = heapq.nsmallest(INSTRUCTIONS, several, key=lambda task_id: digest("agreement", task_id))
    samples = ((one, [parts_of(responses[name]) for name in sorted(ids_of[one])]) for one in drawn)
    verdicts = []
    bar = progress(agreement(sandbox, samples), total=len(drawn), desc="agreement", unit="instruction")
    for _, matrix in bar:
        verdicts += [passed for i, row in enumerate(matrix) for j, passed in enumerate(row) if i != j]
    known = [passed for passed in verdicts if passed is not None]
    return {"instructions": len(drawn), "pairs": len(known), "agreeing": sum(known)}


def main(words: list[str]):
    folder = parse_folder("quality", "how much the tests of a run's examples test", words)
    measure(selfcodealign.open_run(folder, {}, {}))
    selfcodealign.extra("report").show(folder)
