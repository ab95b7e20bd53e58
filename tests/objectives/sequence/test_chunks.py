"""Chunks of two divisions of the same bytes, against their definition."""

import itertools
import random

import torch

from limbeck.objectives.sequence._chunks import chunked


def naive(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> dict[int, tuple[list[int], list[int]]]:
    """The student's first prediction of each chunk -> the predictions of both sides in it."""
    begins, ends = {start for start, _ in theirs} & {start for start, _ in ours}, {end for _, end in theirs} & {end for _, end in ours}
    found: dict[int, tuple[list[int], list[int]]] = {}
    for first, (start, _) in enumerate(ours):
        if start < 0 or start not in begins:
            continue
        end = min((one for one in ends if one > start), default=None)
        if end is None:
            continue
        found[first] = tuple([at for at, (a, b) in enumerate(side) if a >= start and 0 <= b <= end] for side in (ours, theirs))  # pyright: ignore[reportArgumentType]
    return found


def spans(lengths: list[int], first: int = 0) -> list[tuple[int, int]]:
    edges = [first, *itertools.accumulate(lengths, initial=first)][1:]
    return [*itertools.pairwise(edges)]


def test_chunks_are_what_both_divisions_agree_on() -> None:
    draw = random.Random(0)
    for _ in range(60):
        rows: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
        for _ in range(3):
            sides: list[list[tuple[int, int]]] = [[], []]
            base = 0
            for _ in range(draw.randint(1, 2)):  # documents, between which a token is read and not predicted
                total = draw.randint(1, 9)
                for side in sides:
                    cuts = sorted(draw.sample(range(1, total), draw.randint(0, total - 1))) if total > 1 else []
                    side += [*itertools.pairwise([base, *(base + one for one in cuts), base + total])]
                base += total + 1
            if draw.random() < 0.3 and len(sides[0]) > 1:  # bytes that the teacher does not read, at the beginning or at the end
                sides[1] = [one for one in sides[1] if one[1] < sides[1][-1][1]] or sides[1]
            if draw.random() < 0.3:
                sides[1] = sides[1][1:] or sides[1]
            rows.append((sides[0], sides[1]))
        widths = [max(len(row[side]) for row in rows) + draw.randint(0, 2) for side in (0, 1)]
        padded = [[[*row[side], *[(-1, -1)] * (widths[side] - len(row[side]))] for row in rows] for side in (0, 1)]
        fields = [torch.tensor([[one[at] for one in row] for row in padded[side]]) for side in (0, 1) for at in (0, 1)]
        found = chunked(*fields)
        for number, (ours, theirs) in enumerate(rows):
            truth = naive(ours, theirs)
            mine = {first: [at for at in range(len(ours)) if found.of[number, at] == first] for first in {*found.of[number].tolist()} - {-1}}
            yours = {first: [at for at in range(len(theirs)) if found.theirs[number, at] == first] for first in {*found.theirs[number].tolist()} - {-1}}
            assert mine == {first: sides[0] for first, sides in truth.items()}
            assert yours == {first: sides[1] for first, sides in truth.items()}
            last = {sides[0][-1]: sides for sides in truth.values()}
            assert {at for at in range(len(ours)) if found.closes[number, at]} == {*last}
            assert all(found.partner[number, at] == sides[1][-1] for at, sides in last.items())
            assert {at for at in range(len(ours)) if found.single[number, at]} == {at for at, sides in last.items() if len(sides[0]) == len(sides[1]) == 1}
            assert not found.closes[number, len(ours) :].any() and bool((found.of[number, len(ours) :] == -1).all())


def test_padding_on_the_left_is_in_no_chunk() -> None:
    found = chunked(torch.tensor([[-1, -1, 1, 3]]), torch.tensor([[-1, -1, 3, 4]]), torch.tensor([[1, 2, 3, -1]]), torch.tensor([[2, 3, 4, -1]]))
    assert found.of.tolist() == [[-1, -1, 2, 3]] and found.theirs.tolist() == [[2, 2, 3, -1]] and found.single.tolist() == [[False, False, False, True]]
