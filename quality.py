"""How much the tests of the kept examples test, and which samples of an instruction agree. The method itself asks only that tests pass.

    python quality.py runs/first [--examples 100] [--mutants 20]      asserts and killed mutants of a drawn sample of sft.jsonl

A mutant is the response's code with one small change: another operator or constant, a condition negated, a result or a step left out.
Tests kill it if the code no longer passes them; a mutant that runs over the time limit is killed, too, and counted once more as looping.
Some mutants are no different from the code in what they do; no program can tell these, so they count as survivors and the share of killed
mutants is at most too low. Changes of annotations, docstrings and `__main__` blocks, which surely make no difference, are not made.
"""

import argparse
import ast
import copy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from prompting import python_code
from rows import BadInput, digest, progress, read_rows
from sandbox import Sandbox, SandboxError

# ---------------------------------------------------------------------------------------------------------------- mutants

OTHER_OPERATOR = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(code: str, limit: int, seed: int) -> list[str]:
    """At most `limit` different mutants of the code, drawn with the seed. Raises SyntaxError."""
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    made = dict.fromkeys(all_mutants(tree, tree))
    made.pop(ast.unparse(tree), None)
    return sorted(made, key=lambda mutant: digest(seed, "mutant", mutant))[:limit]


def all_mutants(tree: ast.Module, node: ast.AST) -> Iterator[str]:
    """The text of `tree` with one change at or below `node`; the tree is whole again at the end."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment", "decorator_list", "format_spec"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
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
            return [but(ops=[*node.ops[:n], OTHER_OPERATOR[type(op)](), *node.ops[n + 1 :]]) for n, op in enumerate(node.ops)]
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
    sandbox: Sandbox, examples: Iterable[tuple[str, str, str]], limit: int = 20, seed: int = 0
) -> Iterator[tuple[str, Score]]:  # fmt: skip
    """For each (id, code, tests): the id and how many mutants of the code its tests kill, in the order given, as they are done."""

    def programs() -> Iterator[tuple[str, str]]:
        for example_id, code, tests in examples:
            versions = [code, *mutants(code, limit, seed)]
            waiting[example_id] = [len(versions), []]
            for number, version in enumerate(versions):
                yield (example_id, number), f"{version}\n\n{tests}\n"

    waiting = {}  # id: [programs, (number, outcome) of those that are done]
    for (example_id, number), result in sandbox.map(programs()):
        waiting[example_id][1].append((number, result.outcome))
        while waiting and len(waiting[first := next(iter(waiting))][1]) == waiting[first][0]:
            yield first, count_killed(waiting.pop(first)[1])


def count_killed(outcomes: list[tuple[int, str]]) -> Score:
    if (0, "passed") not in outcomes:
        return Score(0, 0, 0)
    verdicts = [outcome for number, outcome in outcomes if number and outcome != "error"]
    return Score(len(verdicts), sum(outcome != "passed" for outcome in verdicts), verdicts.count("timeout"))


def count_asserts(tests: str) -> tuple[int, int]:
    """(asserts, different asserts) in the text of the tests, unittest's methods included."""
    asserts = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert"))
    ]
    return len(asserts), len(set(asserts))


# -------------------------------------------------------------------------------------------------------------- agreement


def agreement(sandbox: Sandbox, samples: list[tuple[str, str]]) -> list[list[bool]]:
    """matrix[i][j]: the code of sample i passes the tests of sample j; samples are (code, tests). n * n programs, equal ones run once."""
    programs = [[f"{code}\n\n{tests}\n" for _, tests in samples] for code, _ in samples]
    distinct = dict.fromkeys(program for row in programs for program in row)
    passed = {program: result.outcome == "passed" for program, result in sandbox.map((program, program) for program in distinct)}
    return [[passed[program] for program in row] for row in programs]


def consensus(matrix: list[list[bool]], ids: list[str]) -> str | None:
    """The sample to keep, of those whose code passes their own tests; None if there is none.

    A sibling agrees with a sample if each one's code passes the other's tests. The sample with the most that agree; among equals the
    one with the most passes, its code on siblings' tests and siblings' codes on its own together; then the smallest id. Agreement
    comes first because tests that assert next to nothing are passed by all, but do not help their own code to pass anything.
    """

    def support(i: int) -> tuple[int, int]:
        siblings = [j for j in range(len(ids)) if j != i]
        return sum(matrix[i][j] and matrix[j][i] for j in siblings), sum(matrix[i][j] + matrix[j][i] for j in siblings)

    passing = [i for i in range(len(ids)) if matrix[i][i]]
    return ids[min(passing, key=lambda i: (*(-count for count in support(i)), ids[i]))] if passing else None


# ----------------------------------------------------------------------------------------------------------- command line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--examples", type=int, default=100, help="how many are drawn (default: 100)")
    parser.add_argument("--mutants", type=int, default=20, help="of each at most (default: 20)")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds for a mutant (default: 3)")
    arguments = parser.parse_args()
    try:
        if not (arguments.run / "sft.jsonl").is_file():
            raise BadInput(f"no finished run: {arguments.run / 'sft.jsonl'} is missing")
        if arguments.examples < 1 or arguments.mutants < 1:
            raise BadInput("--examples and --mutants take 1 or more")
        rows = sorted(read_rows(arguments.run / "sft.jsonl"), key=lambda row: digest("quality", row["id"]))[: arguments.examples]
        examples = [(row["id"], python_code(row["response"]), python_code(row["tests"])) for row in rows]
        asserts = [count_asserts(tests) for _, _, tests in examples]
        with Sandbox(timeout=arguments.timeout) as sandbox:
            scores = mutation_score(sandbox, examples, arguments.mutants)
            measured = [score for _, score in progress(scores, total=len(examples), desc="quality", unit="example") if score.mutants]
    except (BadInput, SandboxError) as error:
        print(f"quality.py: {error}", file=sys.stderr)
        return 2
    total, killed, looping = (sum(column) for column in zip(*measured)) if measured else (0, 0, 0)
    shares = [score.killed / score.mutants for score in measured]
    counted, different = (sum(column) for column in zip(*asserts)) if asserts else (0, 0)
    print(f"{len(examples)} examples, {counted} asserts, {different} different ones")
    print(f"{len(measured)} examples with mutants: {killed} of {total} killed, {looping} of these looping; "
          f"examples whose tests kill all: {shares.count(1.0)}, none: {shares.count(0.0)}")


if __name__ == "__main__":
    sys.exit(main())
