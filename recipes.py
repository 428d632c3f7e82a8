"""The rows of the paper's T10 and T11 as recipes: each is the method with a stage that is made otherwise, or left out."""

RECIPES = {
    "selfcodealign": "seeds -> concepts -> instruction -> tested responses",
    "snippet-to-instruction": "T10: the instruction is written from the seed itself, without concepts",
    "random-snippets": "T10: random snippets are the seeds",
    "oss-instruct": "T11: random snippet -> problem and solution at once, not executed; the model is a teacher",
    "evol-instruct": "T11: the instructions of another run are made harder step by step and answered, not executed; the model is a teacher",
}
FROM_SNIPPETS = ("random-snippets", "oss-instruct")
WITHOUT_CONCEPTS = ("snippet-to-instruction", "oss-instruct")
UNTESTED = ("oss-instruct", "evol-instruct")  # responses are kept without being executed
ANSWER_OTHERS = ("selfcodealign", "evol-instruct")  # may start from the instructions of another run
EVOLUTIONS = [f"evolution-{step}" for step in range(2)]  # before the instructions: the other run's, and a step each


def stages(recipe: str) -> dict[str, tuple[str | None, str | None]]:
    """{stage: (the stage that its rows come from, the key that names the row there)}, in the order in which they are made."""
    chain = {"seeds": (None, None), "concepts": ("seeds", "seed_id"), "instructions": ("concepts", "concepts_id")}
    if recipe == "evol-instruct":
        chain[EVOLUTIONS[0]] = chain.pop("instructions")
        chain |= {stage: (before, "evolved_from") for before, stage in zip(EVOLUTIONS, [*EVOLUTIONS[1:], "instructions"])}
    chain["responses"] = ("instructions", "instruction_id")
    if recipe not in UNTESTED:
        chain["executions"] = ("responses", "response_id")
    return chain | {"selection": (list(chain)[-1], "response_id")}
