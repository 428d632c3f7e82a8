"""What an example must be, given those kept before: no copy, no near-duplicate, no text of a benchmark (paper
2.3 and C)."""

from parts import code
from parts.code import python_code
from parts.contamination import Decontaminator, Finding
from parts.duplicates import NearDuplicates
from parts.rows import digest


class Filters:
    """Filters of examples. A call returns {"reject": reason, ...}, or {} and
    remembers the example, even one that turns out later to solve a benchmark's task."""

    longest = 200  # words of an instruction

    def __init__(self, decontaminator: Decontaminator):
        self.decontaminator = decontaminator
        self.seen = set()
        self.near = {part: NearDuplicates(0.7) for part in ("instruction", "response", "code")}

    def __call__(self, instruction: str, response: str) -> dict:
        if len(instruction.split()) > self.longest:
            return {"reject": "long_instruction"}
        exact, near = self.hashes(instruction, response)
        for reason, number in exact.items():
            if number in self.seen:
                return {"reject": reason}
        find = self.decontaminator.contaminated_by
        if finding := find(instruction) or find(response):
            return contaminated(finding)
        for part, bands in near.items():
            if self.near[part].seen.has_any(bands):
                return {"reject": f"near_duplicate_{part}"}
        self.remember(exact, near)
        return {}

    def remember(self, exact: dict, near: dict):
        self.seen.update(exact.values())
        for part, bands in near.items():
            self.near[part].seen.add(bands)

    def hashes(self, instruction: str, response: str) -> tuple[dict, dict]:
        """{reason: hash of what may occur once only}, {part: hashes of its MinHash bands}."""
        source = python_code(response)
        functions, classes = code.defined_names(source)
        exact = {
            "same_instruction": "".join(instruction.split()),
            "same_response": "".join(response.split()),
            "same_function_names": functions,
            "same_class_names": classes,
        }
        numbers = {reason: int(digest(reason, value)[:16], 16) for reason, value in exact.items() if value}
        texts = {"instruction": instruction, "response": response, "code": code.bare_code(source)}
        return numbers, {part: self.near[part].hashes(text) for part, text in texts.items()}


def contaminated(finding: Finding) -> dict:
    reason, share = f"benchmark_{finding.layer}", round(finding.share, 2)
    return {"reject": reason, "benchmark": [finding.task], "share": share}
