"""Questions asked several at once: what was answered before something went wrong still counts."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

__all__ = ["at_once"]

Part = TypeVar("Part")
Answer = TypeVar("Answer")


def at_once(parts: Sequence[Part], one: Callable[[Part], Answer], parallel: int) -> Iterator[tuple[Part, Answer]]:
    """Give each part and `one(part)` as they come, `parallel` under way at a time.

    Where one fails, those under way are waited for and given, those that are not begun are dropped, and then its error is raised.
    """
    if parallel == 1 or len(parts) < 2:
        yield from ((part, one(part)) for part in parts)
        return
    trouble: BaseException | None = None
    with ThreadPoolExecutor(parallel) as pool:
        waiting: dict[Future[Answer], Part] = {pool.submit(one, part): part for part in parts}
        for answer in as_completed(waiting):
            if answer.cancelled():
                continue
            if (error := answer.exception()) is None:
                yield waiting[answer], answer.result()
            elif trouble is None:
                trouble = error
                for other in waiting:
                    other.cancel()
    if trouble is not None:
        raise trouble
