"""pass@k with an interval, and what two paired scores differ by."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

Z = 1.959964  # of a 95 % interval


def summary(passing: Sequence[int], samples: int = 1) -> dict:
    """From how many of its `samples` pass, task by task: k of n in all, pass@1 and larger pass@k.

    The 95 % interval is Wilson's for one sample per task, else the normal interval of the tasks' means, since
    tasks are what is drawn."""
    k, n = sum(passing), samples * len(passing)
    if samples == 1 or len(passing) == 1:
        interval = list(wilson(k, n))
    else:
        half = Z * np.std(passing, ddof=1) / samples / math.sqrt(len(passing))
        interval = [max(0.0, k / n - half), min(1.0, k / n + half)]
    larger = {f"pass@{size}": pass_at_k(passing, samples, size) for size in (5, 10, 100) if size <= samples}
    return {"k": k, "n": n, "pass@1": k / n, "interval": interval, **larger}


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the share k of n > 0."""
    found = binomtest(k, n).proportion_ci(method="wilson")
    return found.low, found.high


def pass_at_k(passing: Sequence[int], samples: int, k: int) -> float:
    """The mean share of the draws of k from a task's `samples` that hold a passing one."""
    draws = math.comb(samples, k)
    return 1 - sum(math.comb(samples - passed, k) for passed in passing) / draws / len(passing)


def paired(pairs: list[tuple[bool, bool]]) -> dict:
    """The difference of two paired proportions, with Agresti and Min's adjusted Wald interval (2005) and the
    exact two-sided McNemar p."""
    fixed, broken = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
    n, gained, lost = len(pairs) + 2, fixed + 0.5, broken + 0.5
    centre = (gained - lost) / n
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    p = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    difference = {"difference": (fixed - broken) / len(pairs), "low": centre - half, "high": centre + half}
    return difference | {"fixed": fixed, "broken": broken, "p": p, "test": "exact McNemar"}


def paired_shares(pairs: list[tuple[float, float]]) -> dict:
    """`compare_groups` of one model each, with another p: how many of 10,000 draws of the differences' signs
    give a mean as far from 0 (a permutation test, of which McNemar's is the case of one sample). `fixed` and
    `broken` are tasks whose share rises or falls."""
    a, b = np.array(pairs, dtype=float).T
    changed = b - a
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(10_000, len(changed)))
    extreme = np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9
    counts = {"fixed": int((changed > 0).sum()), "broken": int((changed < 0).sum())}
    p = {"p": float((extreme.sum() + 1) / (len(extreme) + 1)), "test": "permutation"}
    return compare_groups(a[None], b[None], np.random.default_rng(0)) | counts | p


def compare_groups(a: np.ndarray, b: np.ndarray, random, draws: int = 10_000) -> dict:
    """The mean difference of two (models, tasks) of shares, the same tasks in both, with a 95 % interval by
    bootstrap and a two-sided p, of the difference over its standard error. Tasks are drawn anew, and in each
    group models: those scored on the same tasks do not count as more tasks."""

    def weights(count: int) -> np.ndarray:
        return random.multinomial(count, np.full(count, 1 / count), size=draws) / count

    task_weights = weights(a.shape[1])
    means = {
        name: (weights(len(group)) @ group * task_weights).sum(axis=1) for name, group in zip("ba", (b, a))
    }
    drawn, difference = means["b"] - means["a"], float(b.mean() - a.mean())
    low, high = map(float, np.quantile(drawn, [0.025, 0.975]))
    p = math.erfc(abs(difference) / drawn.std() / math.sqrt(2)) if drawn.std() else 1.0
    return {"difference": difference, "low": low, "high": high, "p": p}
