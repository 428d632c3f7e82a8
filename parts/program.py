"""What runs in the process of an untrusted program: its layers, the program as __main__, how it ended.

Process and worker share a socket, `CHANNEL`. Before the program starts, the process sends a random token. It
sends the token again only when control has reached the program's end and none of its tests has failed; any
other end sends an outcome and a detail, or nothing. The worker reads these messages as claims, and only the
token gives a pass.

Tests that fail without an exception are noted while the program runs: results of unittest, runners of
doctest, and assertions whose failure is swallowed (`Tests`).
"""

import ast
import builtins
import contextlib
import ctypes
import importlib
import os
import re
import sys
import threading
import traceback
import types

from parts import containment
from parts.code import dotted_path, imported_names, is_assertion, swallowing_handler

CHANNEL = containment.OPEN_FILES - 1  # the descriptor on which a program's process reports
DETAIL_CHARACTERS = 300


def be_program(config, channel, folder, source):
    """Apply the layers, run the program as __main__, report how it ended. Never returns."""
    own_id = os.getpid()
    try:
        os.dup2(channel, CHANNEL, inheritable=False)
        os.setsid()
        path, work = os.path.join(folder, "main.py"), os.path.join(folder, "work")
        os.chdir(work)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        for layer in config["layers"]:
            containment.PROGRAM_LAYERS[layer](config)
        os.closerange(3, CHANNEL)
        main = types.ModuleType("__main__")
        main.__file__, main.__builtins__ = path, builtins
        sys.modules["__main__"], sys.argv = main, [path]
        sys.path.insert(0, work)
        names = main.__dict__
    except BaseException as problem:  # nothing may leave: below is a copy of the worker's loop
        report("error", problem)
    try:
        tests = Tests(path)
        code, last = tests.compile(source)
        # The token lives only on this frame's value stack: no frame, local variable or gc call shows it.
        # Arguments are evaluated from left to right: prove_end gets it when exec has returned. Keep one line.
        prove_end(announce_token(), own_id, exec(code, names), last and eval(last, names), tests.check(last))
    except BaseException as problem:  # whatever a program raises, even KeyboardInterrupt, is its verdict
        if os.getpid() != own_id:  # a process that the program forked
            leave_like_python(problem)
        outcome = "exited" if isinstance(problem, SystemExit) else "failed"
        report("memory" if isinstance(problem, MemoryError) else outcome, problem)


class Tests:
    """What the tests of a program report without an exception that ends it."""

    def __init__(self, path):
        self.path, self.assertion_lines = path, set()
        self.results, self.runners, self.swallowed = [], [], None  # of unittest, of doctest, an exception

    def compile(self, source):
        """The program's code, and that of the unittest.main() which ends it, or None. What the program uses
        of unittest, doctest, threads and suppress() will report here."""
        if b"unittest" in source:
            note_objects(importlib.import_module("unittest").TestResult, self.results)
        if b"doctest" in source:
            note_objects(importlib.import_module("doctest").DocTestRunner, self.runners)
        if b"Thread" in source:
            print_problem = threading.excepthook
            threading.excepthook = lambda args: (self.note(args.exc_value), print_problem(args))[1]
        words = b"exit", b"quit", b"SystemExit", b"unittest", b"except", b"suppress", b"Thread"
        try:
            if any(word in source for word in words):
                tree = compile(source, self.path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
                last = take_last_call(tree)
                self.note_swallowed(tree)
                last = last and compile(last, self.path, "eval", dont_inherit=True)
                return compile(tree, self.path, "exec", dont_inherit=True), last
        except RecursionError:  # a tree takes more of the stack than the program itself
            pass
        return compile(source, self.path, "exec", dont_inherit=True), None

    def note_swallowed(self, tree):
        """Make each handler that swallows a failed assertion call `note` first."""
        builtins.__dict__["<swallowed>"], leave = self.note, contextlib.suppress.__exit__
        contextlib.suppress.__exit__ = lambda manager, *raised: (
            leave(manager, *raised) and (self.note(raised[1]) or True)
        )
        for node in ast.walk(tree):
            if is_assertion(node):
                self.assertion_lines |= {*range(node.lineno, node.end_lineno + 1)}
            if handler := swallowing_handler(node):
                note = ast.Expr(ast.Call(ast.Name("<swallowed>", ast.Load()), [], []))
                ast.fix_missing_locations(ast.copy_location(note, handler.body[0]))
                handler.body.insert(0, note)

    def note(self, problem=None):
        """Keep an exception that came out of an assertion at the top level or in a function named as a test:
        others may well use one to check an argument, and their callers expect it."""
        problem = problem or sys.exception()
        for frame, line in traceback.walk_tb(problem.__traceback__):
            if line in self.assertion_lines and frame.f_code.co_filename == self.path:
                if re.search("^<module>$|(^|_)test", frame.f_code.co_name, re.IGNORECASE):
                    self.swallowed = self.swallowed or problem

    def check(self, with_unittest):
        """Raise unless all tests that were noted have passed, and where there are any, at least one ran."""
        if self.swallowed:
            raise AssertionError(f"swallowed: {self.swallowed!r}")
        results = self.results
        ran = sum(result.testsRun - len(result.skipped) for result in results)
        if (results or with_unittest) and ran < 1 or not all(result.wasSuccessful() for result in results):
            skipped = sum(len(result.skipped) for result in results)
            raise AssertionError(f"unittest: {results}, skipped={skipped}")
        if self.runners and not sum(runner.tries for runner in self.runners):
            raise AssertionError("doctest: no example")
        if failures := sum(runner.failures for runner in self.runners):
            raise AssertionError(f"doctest: {failures} failures")


def note_objects(kind, made):
    """Add each object of a class, once it is made, to `made`."""
    make = kind.__init__

    def make_and_note(self, *args, **options):
        make(self, *args, **options)
        made.append(self)

    kind.__init__ = make_and_note


def take_last_call(tree):
    """Put its function's mere name in place of a last statement that is a literal exit with status 0 or
    unittest.main(), of a last `if __name__ == "__main__":` too: control that gets there has reached the end.
    Returns the call of unittest.main as an expression, or None."""
    block = tree.body
    match block[-1:]:
        case [ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")]), body)]:
            block = body
    last = block[-1] if block else None
    call = getattr(last, "value", getattr(last, "exc", None))  # of an expression, or of a raise
    function, expression = getattr(call, "func", call), None
    match dotted_path(function, imported_names(tree)), call:
        case "unittest.main", ast.Call(_, _, keywords):
            no_exit = ast.keyword("exit", ast.Constant(False))
            call.keywords = [*(keyword for keyword in keywords if keyword.arg != "exit"), no_exit]
            expression = ast.fix_missing_locations(ast.Expression(call))
        case "sys.exit" | "exit" | "quit" | "SystemExit", ast.Call(_, [] | [ast.Constant(int(0))], []):
            pass
        case "SystemExit", ast.Name():
            pass
        case _:
            return None
    block[-1] = ast.copy_location(ast.Expr(function), last)
    return expression


def announce_token():
    token = os.urandom(16)
    os.write(CHANNEL, token)
    return token


def prove_end(token, own_id, *_):
    if os.getpid() != own_id:
        leave_like_python(SystemExit(0))
    os.write(CHANNEL, token)
    os._exit(0)


def report(outcome, problem):
    try:
        name = type(problem).__name__
        try:
            text = str(problem)
        except BaseException as second:  # __str__ is the program's own code
            text = f"<{type(second).__name__} in its __str__>"
        detail = f"{name}: {text}" if text else name
        os.write(CHANNEL, f"{outcome}\0{detail[:DETAIL_CHARACTERS]}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def leave_like_python(problem):
    """End with the exit status, the atexit calls and the flushed files of an ordinary Python process."""
    status = 1
    if isinstance(problem, SystemExit):
        status = problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    ctypes.pythonapi.Py_Exit(status)
