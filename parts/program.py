"""What runs in the process of an untrusted program: its layers, the program as __main__, how it ended.

Process and worker share a socket, `CHANNEL`. Before the program starts, the process sends a random token. It
sends the token again only when control has reached the program's end; any other end sends an outcome and a
detail, or nothing. The worker reads these messages as claims, and only the token gives a pass.
"""

import ast
import builtins
import ctypes
import os
import sys
import types

from parts import containment

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
        code, tests = compile_program(source, path)
        # The token lives only on this frame's value stack: no frame, local variable or gc call shows it.
        # Arguments are evaluated from left to right: prove_end gets it when exec has returned. Keep one line.
        prove_end(announce_token(), own_id, exec(code, names), tests and check_tests(eval(tests, names)))
    except BaseException as problem:  # whatever a program raises, even KeyboardInterrupt, is its verdict
        if os.getpid() != own_id:  # a process that the program forked
            leave_like_python(problem)
        outcome = "exited" if isinstance(problem, SystemExit) else "failed"
        report("memory" if isinstance(problem, MemoryError) else outcome, problem)


def compile_program(source, path):
    """The program's code, and that of the unittest.main() which ends it, or None.

    Where the last statement (of a last `if __name__ == "__main__":` too) is a literal exit with status 0 or
    unittest.main(), the function's mere name takes its place: control that gets there has reached the end.
    """
    tree, tests = source, None
    if any(word in source for word in (b"exit", b"quit", b"SystemExit", b"unittest")):
        tree = compile(source, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        block = tree.body
        match block[-1:]:
            case [ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")]), body)]:
                block = body
        last = block[-1] if block else None
        call = getattr(last, "value", getattr(last, "exc", None))  # of an expression, or of a raise
        match call:
            case ast.Call(ast.Attribute(ast.Name("unittest"), "main"), _, keywords):
                no_exit = ast.keyword("exit", ast.Constant(False))
                call.keywords = [*(keyword for keyword in keywords if keyword.arg != "exit"), no_exit]
                expression = ast.fix_missing_locations(ast.Expression(call))
                tests = compile(expression, path, "eval", dont_inherit=True)
            case (
                ast.Call(ast.Attribute(ast.Name("sys"), "exit"), [] | [ast.Constant(int(0))], [])
                | ast.Call(ast.Name("exit" | "quit" | "SystemExit"), [] | [ast.Constant(int(0))], [])
                | ast.Name("SystemExit")
            ):
                pass
            case _:
                return compile(source, path, "exec", dont_inherit=True), None
        block[-1] = ast.copy_location(ast.Expr(getattr(call, "func", call)), last)
    return compile(tree, path, "exec", dont_inherit=True), tests


def check_tests(program):
    """Raise unless unittest.main() ran at least one test and all passed."""
    result = program.result
    if not result.wasSuccessful() or result.testsRun <= len(result.skipped):
        raise AssertionError(f"unittest.main: {result}, skipped={len(result.skipped)}")


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
