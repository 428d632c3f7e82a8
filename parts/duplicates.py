"""Near-duplicates of texts by MinHash, 8 bytes a band in memory."""

import re

import numpy as np


class NumberSet:
    """64-bit numbers, 8 bytes each: sorted arrays, each more than twice as long as the next, and a small set
    for the latest."""

    def __init__(self):
        self.latest, self.arrays = set(), []

    def has_any(self, numbers: np.ndarray) -> bool:
        found = (
            array[np.searchsorted(array, numbers).clip(max=len(array) - 1)] == numbers
            for array in self.arrays
        )
        return not self.latest.isdisjoint(numbers.tolist()) or any(map(np.any, found))

    def add(self, numbers: np.ndarray):
        self.latest.update(numbers.tolist())
        if len(self.latest) > 100_000:
            array = np.fromiter(self.latest, np.uint64, len(self.latest))
            self.latest.clear()
            while self.arrays and len(self.arrays[-1]) <= 2 * len(array):
                array = np.concatenate([self.arrays.pop(), array])
            array.sort()
            self.arrays.append(array)


class NearDuplicates:
    """Whether a text is nearly one seen before: MinHash of word 5-grams, 250 permutations, found by
    locality-sensitive hashing.

    The library chooses the bands for the threshold. Of each text its bands' hashes stay, 8 bytes each; in the
    library's own index the same takes forty times as much memory.
    """

    def __init__(self, threshold: float, permutations: int = 250):
        from datasketch import MinHash, MinHashLSH

        self.empty = MinHash(num_perm=permutations)
        bands = MinHashLSH(threshold=threshold, num_perm=permutations)
        self.shape, self.seen = (bands.b, bands.r), NumberSet()
        odd = np.random.default_rng(0).integers(2**63, size=self.shape, dtype=np.uint64) * np.uint64(
            2
        ) + np.uint64(1)
        self.factors = odd  # of a multiplicative hash of each band

    def hashes(self, text: str) -> np.ndarray:
        """A number for each band: texts that share one are near-duplicates."""
        words = re.findall(r"\w+", text.lower())
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        minhash = self.empty.copy()
        minhash.update_batch([gram.encode() for gram in grams])
        bands, rows = self.shape
        return (minhash.hashvalues[: bands * rows].reshape(self.shape) * self.factors).sum(
            axis=1, dtype=np.uint64
        )

    def is_new(self, text: str) -> bool:
        """False if a near-duplicate was seen; otherwise True, and the text counts as seen from now on."""
        hashes = self.hashes(text)
        if self.seen.has_any(hashes):
            return False
        self.seen.add(hashes)
        return True
