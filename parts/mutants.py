"""Mutants: how much the tests of some code test.

A mutant is the code with one small change: another operator or constant, a condition negated, a result or a
step left out. Tests kill it if it no longer passes them, or runs over the time limit. Some mutants are no
different from the code in what they do; no program can tell these, so they count as survivors and the share
of killed mutants is at most too low. Changes of annotations, docstrings and `__main__` blocks, which surely
make no difference, are not made.
"""

import ast
import copy
import heapq
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from parts.code import is_main_block, program
from parts.rows import digest

MUTANTS = 10  # of each example
TIMEOUT = 3.0  # seconds for a mutant
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
    sandbox, examples: Iterable[tuple[Hashable, str, str]], limit: int = MUTANTS
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
    sandbox, groups: Iterable[tuple[Hashable, Iterable[str]]]
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
