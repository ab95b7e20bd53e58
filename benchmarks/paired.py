"""The same runs with several seeds: their mean, and the paired difference of two of them, each with Student's 95% interval."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from limbeck.measure.statistics import paired_t

Call = TypeVar("Call")
Found = TypeVar("Found")


def every(one_seed: Callable[[Call], Found], calls: Sequence[Call], jobs: int) -> list[Found]:
    """What each call finds, in their order, `jobs` of them at a time in processes of their own."""
    if jobs == 1:
        return [one_seed(call) for call in calls]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(one_seed, calls))


def interval(values: list[float]) -> dict[str, Any]:
    """The mean over the seeds with its interval."""
    found = paired_t(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "values": values}


def difference(a: list[float], b: list[float]) -> dict[str, Any]:
    """The mean of a - b over the seeds with its interval, and in how many of them a is above b."""
    gaps = [one - other for one, other in zip(a, b, strict=True)]
    found = paired_t(gaps)
    return {"mean": found.mean, "low": found.low, "high": found.high, "above": sum(gap > 0 for gap in gaps), "n": len(gaps)}
