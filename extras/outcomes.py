"""What else the samples of a run are good for: pairs for preference tuning, tasks for reinforcement learning.

Both are made of the tasks in sft.jsonl, which passed every filter and are not held out. Every program that a
row depends on runs again: verdicts that differ from run to run make no row.
"""

import collections
from collections.abc import Iterator
from pathlib import Path

from extras.quality import agreement
from parts.code import program, python_code
from parts.contamination import Decontaminator
from parts.folder import read_config, read_run
from parts.mutants import outcomes_of
from parts.rows import BadInput, KeptRows, progress, read_rows, row_id
from sandbox import Sandbox
from selfcodealign import code_and_tests


def tasks(folder: Path) -> Iterator[tuple[dict, dict, list[dict]]]:
    """Yield (example, its task, the executed responses to it with `outcome` and `detail`) for each example of
    sft.jsonl. Raises BadInput."""
    stages, executions = read_run(folder)["stages"], folder / "executions.jsonl"
    if "executions" not in stages or not executions.is_file():
        raise BadInput(f"{folder} has no failing and passing responses: none was executed")
    stage, key, _ = stages["executions"]
    responses, instructions = (KeptRows(folder / f"{name}.jsonl") for name in (stage, "instructions"))
    wanted = {row["instruction_id"] for row in read_rows(folder / "sft.jsonl")}
    verdicts = collections.defaultdict(list)
    for row in read_rows(executions):
        if row["instruction_id"] in wanted:
            verdict = {"outcome": row["outcome"], "detail": row["detail"][:100]}
            verdicts[row["instruction_id"]].append((row[key], verdict))
    for example in read_rows(folder / "sft.jsonl"):
        executed = [responses[name] | verdict for name, verdict in verdicts[example["instruction_id"]]]
        yield example, instructions[example["instruction_id"]], executed


def sandbox_of(folder: Path) -> Sandbox:
    config = read_config(folder)
    if not config:
        raise BadInput(f"{folder} is no run folder: it has no config.json")
    return Sandbox(config["workers"], config["timeout"], config["memory_mb"])


def says(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


# ------------------------------------------------------------------------------------------------- preference


def likeness(chosen: str, response: dict) -> tuple:
    """Order of the failing responses: an assertion failed before an exception, that before a time limit or a
    crash; then those of the chosen one's length."""
    by_assertion = response["outcome"] == "failed" and "AssertionError" in response["detail"]
    difference = abs(len(response["response"]) - len(chosen))
    return not by_assertion, response["outcome"] != "failed", difference, response["id"]


def programs_of(response: dict, example: dict) -> list[str]:
    """The response's code with its own tests, and with those of the example."""
    code, tests = code_and_tests(response)
    return [program(code, tests), program(code, python_code(example["tests"]))]


def preference_pairs(folder: Path, pairs: int) -> tuple[list[dict], dict[str, int]]:
    """For each example of sft.jsonl at most `pairs` rows {prompt, chosen, rejected, ...}, and what became of
    the examples, in numbers.

    `rejected` fails its own tests and those of `chosen`: a response that passes the latter may be right, and
    its own tests wrong. Raises BadInput.
    """
    offered, decontaminator, made = {}, Decontaminator(), {}

    def groups() -> Iterator[tuple[str, list[str]]]:
        for example, _, responses in tasks(folder):
            failing = {row["response"]: row for row in responses if row["outcome"] != "passed"}
            clean = [row for row in failing.values() if not decontaminator.contaminated_by(row["response"])]
            candidates = sorted(clean, key=lambda row: likeness(example["response"], row))
            offered[example["id"]] = example, candidates
            programs = (text for row in candidates for text in programs_of(row, example))
            yield example["id"], [example["program"], *programs]

    with sandbox_of(folder) as sandbox:
        for name, outcomes in progress(outcomes_of(sandbox, groups()), desc="pairs", unit="task"):
            example, candidates = offered[name]
            failing = {text for text, outcome in outcomes.items() if outcome not in ("passed", "error")}
            wrong = [row for row in candidates if {*programs_of(row, example)} <= failing]
            if outcomes[example["program"]] != "passed":
                made[name] = "whose chosen response passes no longer", []
            elif not wrong:
                all_right = "whose failing responses may be right"
                made[name] = all_right if candidates else "without a failing response", []
            else:
                made[name] = "with a pair", [pair_of(example, row) for row in wrong[:pairs]]
    fates = collections.Counter(fate for fate, _ in made.values())
    return [row for name in offered for row in made[name][1]], {"examples": len(made), **fates}


def pair_of(example: dict, rejected: dict) -> dict:
    """TRL takes lists of one message each, LLaMA-Factory the messages."""
    right, wrong = (says("assistant", row["response"]) for row in (example, rejected))
    return {
        "id": row_id("preference", example["id"], rejected["id"]),
        "prompt": says("user", example["instruction"]),
        "chosen": right,
        "rejected": wrong,
        "chosen_turn": right[0],
        "rejected_turn": wrong[0],
        "rejected_by": rejected["outcome"],
        "instruction_id": example["instruction_id"],
        "response_id": example["response_id"],
        "rejected_id": rejected["id"],
    }


# ------------------------------------------------------------------------------------- reinforcement learning


def reward_tasks(folder: Path, low: float, high: float) -> tuple[list[dict], dict[str, int]]:
    """Rows {prompt, tests, timeout, memory_mb, pass_rate, agreement, ...} for the tasks in sft.jsonl of whose
    samples a share from `low` to `high` passed, and what became of the examples, in numbers.

    The tests are those of the passing samples that most of the others' code passes (`agreement`, None where
    one sample passed); rows with more agreement come first. Raises BadInput.
    """
    config, wanted, samples_of, rows, examples = read_config(folder), {}, {}, [], 0
    for example, task, responses in tasks(folder):
        examples += 1
        passing = [row for row in responses if row["outcome"] == "passed"]
        passing.sort(key=lambda row: (row["id"] != example["response_id"], row["id"]))
        rate = len(passing) / config["samples"]
        if low <= rate <= high:
            wanted[example["id"]] = example, task, rate
            samples_of[example["id"]] = list(map(code_and_tests, passing))
    with sandbox_of(folder) as sandbox:
        matrices = agreement(sandbox, samples_of.items())
        for name, matrix in progress(matrices, total=len(wanted), desc="agreement", unit="task"):
            if found := most_agreed(matrix):
                best, share = found
                example, task, rate = wanted[name]
                rows.append(task_of(example, task, samples_of[name][best][1], rate, share, config))
    # Those without a number come last, so that the column's type shows in the first row.
    rows.sort(key=lambda row: (row["agreement"] is None, -(row["agreement"] or 0), row["id"]))
    counts = {"examples": examples, "tasks": len(rows), "outside the pass rate": examples - len(wanted)}
    return rows, counts | {"whose samples pass no longer": len(wanted) - len(rows)}


def most_agreed(matrix: list[list[bool | None]]) -> tuple[int, float | None] | None:
    """The sample whose tests most others' code passes, the first of several, and the share of these others;
    None where no sample passes its own tests. matrix[i][j]: code i passes tests j."""
    samples = range(len(matrix))
    votes = {j: sum(bool(matrix[i][j]) for i in samples if i != j) for j in samples if matrix[j][j]}
    if not votes:
        return None
    best = max(votes, key=lambda j: (votes[j], -j))
    return best, votes[best] / (len(matrix) - 1) if len(matrix) > 1 else None


def task_of(example: dict, task: dict, tests: str, rate: float, share: float | None, config: dict) -> dict:
    return {
        "id": row_id("rl", example["id"]),
        "prompt": says("user", task["instruction"]),
        "tests": tests,
        "timeout": config["timeout"],
        "memory_mb": config["memory_mb"],
        "pass_rate": rate,
        "agreement": share,
        "instruction_id": task["id"],
        "response_id": example["response_id"],
    }
