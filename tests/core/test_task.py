"""Where batches begin: against an epoch that is dealt out by hand."""

import pytest

from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import starts


@pytest.mark.parametrize("count", [1, 7, 12, 13])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_batches_are_dealt_out_to_processes_in_turn(count: int, size: int, world: int, whole: bool) -> None:
    pieces = [piece for piece in range(0, count, size) if whole or piece + size <= count]
    rounds = [pieces[at : at + world] for at in range(0, len(pieces), world)]
    kept = [one for one in rounds if whole or len(one) == world]  # an incomplete round is for nobody
    for rank in range(world):
        dealt = [one[rank] for one in kept if rank < len(one)]
        if not kept:
            with pytest.raises(DataError, match=f"the training split has {count} examples: no batch can be filled"):
                starts(count, {"batch_size": size, "rank": rank, "world": world})
        else:
            assert list(starts(count, {"batch_size": size, "rank": rank, "world": world, "whole": whole})) == dealt


def test_what_cannot_be_filled_is_told_in_the_words_of_who_asks() -> None:
    with pytest.raises(DataError, match=r"^batch_size is 4 on each of 3 processes, and there are 11 made examples: no batch can be filled; lower batch_size$"):
        starts(11, {"batch_size": 4, "world": 3}, of="there are {} made examples")
    with pytest.raises(RecipeError, match="batch_size is 0; it must be one or more"):
        starts(11, {"batch_size": 0})
    assert list(starts(0, {"batch_size": 4, "whole": True})) == []
