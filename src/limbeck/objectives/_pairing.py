"""Which layers of two models belong together.

Shapes: N examples, D channels, H x W places of a map, T places of a sequence, C classes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Literal

from limbeck.core.errors import MismatchError

__all__ = ["Wish", "pair"]

Wish = Literal["stages", "signed", "middle", "last", "vector"]
"""What an objective wants paired: the ends of all stages, the same before their last activation, of the middle one, of the last one, or the vector that the
classifier reads."""
Shapes = Mapping[str, tuple[int, ...]]


def pair(wish: Wish, student: Shapes, teacher: Shapes, classes: int, name: str) -> list[tuple[str, str]]:
    """Pair layers of two models by the shapes that they give.

    `student`, `teacher`: path -> shape, in the order in which the layers ran. The stages of a model are, where it has them,

    - for maps `[N, D, H, W]`: the last and outermost layer of each resolution; in a network of one resolution, its numbered blocks;
    - for sequences `[N, T, D]`: its outermost numbered blocks (`blocks.0`, `encoder.layer.3`), each of them; else the last layer of each length;
      a convolutional stem of several resolutions comes before them;
    - for vectors `[N, D]`, in a model that has nothing else: its numbered blocks, else the last layer of each width.

    What gives the answer itself is no stage. The model of fewer stages has each of them paired, in order, with one of the other's: where both have a stage of
    one resolution (or length), these two, else those that lie at the nearest relative depth, so that 4 blocks meet the 3rd, 6th, 9th and 12th of 12.

    Raises:
        MismatchError: no layers of the kind that is wanted.
    """
    student, teacher = ({path: shape for path, shape in shapes.items() if len(shape) > 1} for shapes in (student, teacher))
    for shapes, side in ((student, "student"), (teacher, "teacher")):
        if not shapes:
            raise MismatchError(f"{name} cannot choose layers: the {side} shows none; teach from one model ({{kind: frozen}}), or name the layers")
    if wish == "vector":
        return [(_vector(student, classes, "student", name), _vector(teacher, classes, "teacher", name))]
    ours, theirs = _stages(student, classes, "student", name), _stages(teacher, classes, "teacher", name)
    if wish == "last":
        return [(ours[-1], theirs[-1])]
    if len(ours) <= len(theirs):
        pairs = list(zip(ours, _partners(ours, theirs, student, teacher), strict=True))
    else:
        pairs = list(zip(_partners(theirs, ours, teacher, student), theirs, strict=True))
    if wish == "signed":
        return [(_signed(one, student), _signed(other, teacher)) for one, other in pairs]
    return [pairs[len(pairs) // 2]] if wish == "middle" else pairs


def _signed(end: str, shapes: Shapes) -> str:
    """What comes before the activation that a stage ends with, told by its name; the stage's end itself where it ends otherwise."""
    inner = [path for path in shapes if path.startswith(f"{end}.") and not any(other.startswith(f"{path}.") for other in shapes)]
    return f"{inner[-1]}:in" if inner and re.fullmatch(r"(re_?lu|act(ivation)?)\d*", inner[-1].rpartition(".")[2]) else end


def _partners(few: Sequence[str], many: Sequence[str], shapes: Shapes, others: Shapes) -> list[str]:
    """For each of `few` one of `many`, in order, no two the same: the cheapest such choice, found stage by stage."""

    def cost(i: int, j: int) -> float:
        here, there = shapes[few[i]], others[many[j]]
        unlike = len(here) != len(there) or _place(here) != _place(there)
        return unlike + abs((i + 1) / len(few) - (j + 1) / len(many))

    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(-1, j): (0.0, ()) for j in range(-1, len(many))}  # the first i, among the first j
    for i in range(len(few)):
        best[i, i - 1] = (math.inf, ())
        for j in range(i, len(many)):
            before, chosen = best[i - 1, j - 1]
            best[i, j] = min(best[i, j - 1], (before + cost(i, j), (*chosen, j)))
    return [many[j] for j in best[len(few) - 1, len(many) - 1][1]]


def _place(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if len(shape) == 4 else shape[1:2] if len(shape) == 3 else ()


def _stages(shapes: Shapes, classes: int, side: str, name: str) -> list[str]:
    """The ends of the stages of a model, first to last."""
    examples = next(iter(shapes.values()))[0]  # windows and the like have other counts
    inner = {path: shape for path, shape in _before_the_answer(shapes, classes).items() if shape[0] == examples}
    sequences, vectors = ({path: shape for path, shape in inner.items() if len(shape) == rank} for rank in (3, 2))
    maps = _maps(inner, {shape[1] for shape in sequences.values()})
    ends, blocks = _ends(maps), _blocks(sequences)
    if len(ends) > 1:
        found = ends + blocks
    else:
        found = blocks or _blocks(maps, least=2) or ends or _ends(sequences) or _blocks(vectors, least=2) or _ends(vectors)
    if not found:
        raise MismatchError(f"{name} finds no stages in the {side}, no layer that gives maps, sequences or vectors: name the layers, layers: {{mine: theirs}}")
    order = list(shapes)
    return sorted(found, key=order.index)


def _maps(shapes: Shapes, lengths: set[int]) -> Shapes:
    """The maps, without those of one place, attention between as many places as a sequence has, and maps with their channels last, which have another form."""
    places = {path: shape[2:] for path, shape in shapes.items() if len(shape) == 4 and math.prod(shape[2:]) > 1}
    places = {path: (high, wide) for path, (high, wide) in places.items() if not (high == wide and high in lengths)}
    form = next((high / wide for high, wide in places.values()), 1.0)
    return {path: shapes[path] for path, (high, wide) in places.items() if 0.5 < high / wide / form < 2}


def _ends(shapes: Shapes) -> list[str]:
    """The last layer of each resolution, length or width; what holds others runs to its end after them.

    Only layers no deeper in the model than it takes to see all of these: within a block that halves a map, the last layer before it does is no end.
    """
    kinds = {path: _place(shape) or shape for path, shape in shapes.items()}
    depth = max((min(path.count(".") for path in kinds if kinds[path] == kind) for kind in set(kinds.values())), default=0)
    return list({kind: path for path, kind in kinds.items() if path.count(".") <= depth}.values())


def _blocks(shapes: Shapes, *, least: int = 1) -> list[str]:
    """The outermost layers that are numbered, several of them, and hold others, `blocks.0` or `layer1`; where none hold others, those that are alike."""
    holders = {path[: dot.start()] for path in shapes for dot in re.finditer(r"\.", path)}
    numbered = {path: match[1] for path in shapes if (match := re.fullmatch(r"(.*?)\d+", path))}
    holding = {path: family for path, family in numbered.items() if path in holders}
    alike = {path: family for path, family in numbered.items() if sum(shapes[path] == shapes[other] for other in numbered if numbered[other] == family) > 1}
    families = holding or (alike if least == 1 else {})
    several = {path: family for path, family in families.items() if list(families.values()).count(family) > 1} or families
    outer = [path for path in several if not any(path.startswith(f"{other}.") for other in several)]
    return outer if len(outer) >= least else []


def _before_the_answer(shapes: Shapes, classes: int) -> Shapes:
    """Leave out what ran last, all that it holds and that holds it, and what ran just before of the answer's shape: an activation may follow it."""
    *_, last = shapes
    if shapes[last][1 if len(shapes[last]) == 4 else -1] != classes:
        return shapes
    answer = set(takewhile(lambda path: shapes[path] == shapes[last], reversed(list(shapes))))
    kept = {path: shape for path, shape in shapes.items() if path not in answer}
    return kept or {path: shape for path, shape in shapes.items() if path != last and not _kin(path, last)}


def _kin(one: str, other: str) -> bool:
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _vector(shapes: Shapes, classes: int, side: str, name: str) -> str:
    """What the classifier reads: the input of the last layer that gives `[..., C]`, or of the one just before it, where that only changes the form."""
    leaves = [path for path in shapes if not any(other.startswith(f"{path}.") for other in shapes)]
    answers = [index for index, path in enumerate(leaves) if shapes[path][-1] == classes and len(shapes[path]) < 4]
    if not answers:
        raise MismatchError(f"{name} finds no classifier in the {side}, no layer that gives [N, {classes}]: name the layers, layers: {{mine: theirs}}")
    run = takewhile(lambda path: shapes[path] == shapes[leaves[answers[-1]]], reversed(leaves[: answers[-1] + 1]))
    alike = [path for path in run if path.rpartition(".")[0] == leaves[answers[-1]].rpartition(".")[0]]
    return f"{alike[1] if len(alike) == 2 else alike[0]}:in"
