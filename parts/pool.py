"""A map over all allowed cores, in order, some items ahead, in processes that end with their parent."""

import collections
import gc
import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from parts.containment import PR_SET_PDEATHSIG, prctl


def map_in_order(function: Callable, items: Iterable[tuple], at_a_time: int = 64) -> Iterator:
    """Yield `function(*item)` of each item. BrokenExecutor: a process was killed (from Python 3.11.5 on)."""
    items = iter(items)
    batches = iter(lambda: list(itertools.islice(items, at_a_time)), [])
    cores = len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(cores, initializer=prepare_worker, initargs=(function,))
    try:
        begun = (pool.submit(run_batch, batch) for batch in batches)
        ahead = collections.deque(itertools.islice(begun, 2 * cores))
        while ahead:
            ahead.extend(itertools.islice(begun, 1))
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent():
    """End this process of `multiprocessing` when its parent ends. What it forks does not inherit this."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not multiprocessing.parent_process().is_alive():  # it had ended before
        os._exit(1)


def prepare_worker(function: Callable):
    """Make a worker end if its parent is killed, whose lock on a run folder it would hold on to, leave Ctrl-C
    to the parent, and say nothing of other people's invalid escapes."""
    global work
    work = function
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    gc.set_threshold(100_000, 50, 50)  # syntax trees are many objects in no circle: a tenth of the time


def run_batch(batch: list[tuple]) -> list:
    return [work(*item) for item in batch]
