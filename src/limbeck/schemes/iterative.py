"""Iterative pruning: prune a little, train until it has recovered, prune again.

LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989; Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
arXiv:1506.02626.
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.lookup import check_options, find, full_name, options
from limbeck.core.scheme import Course

__all__ = ["Iterative"]


class Iterative(Course):
    """Prune, recover, prune again: round after round takes a part away by `method`, and trains what is left as the stage says, until the share `to` is gone.

    The loop of Optimal Brain Damage (LeCun et al. 1989, the recipe of its section 2.2; Han et al. 2015, arXiv:1506.02626, sec. 3.4). A stage `student` comes to
    the stages student-1-pruned, student-1, student-2-pruned, ..., student: surgeries, and the stage as it is written on what each has left. It begins with the
    model of its `init`, or trains a fresh one first, student-0. With `falls` every round is run, and `student` is the smallest of student-1, student-2, ...
    that is hardly worse on the validation split than the model which the first round began with.

    After round i of n the share left is (1 - to)^(i / n), each round taking the same part of what is there (geometric), or 1 - to * i / n (linear).

    Args:
        method: the surgery, by name or as {kind: prune.weights, saliency: obd}, without the option that says how much.
        to: the share of the first model that is gone in the end, above 0 and below 1.
        rounds: how often it is pruned.
        shape: whether a round takes the same part of what is left (geometric) or of the first model (linear).
        option: the method's option for how much, with dots into a mapping; one called ratio is told what goes, any other, such as target.macs, what stays.
        share_of: whether the option means a share of the first model (first; zeros count as gone) or of the one at hand (last; a surgery that cuts). It is
            first for prune.weights, and must be said for other methods.
        falls: how much worse than the first model's the validation metric may be, in the metric's own unit: 0.005 of an accuracy is half a point.
        by: with falls, the figure that is to be small; weights_left where share_of is first, parameters where it is last.

    Raises:
        RecipeError: a share that is none, a method that there is not or that says how much itself, `by` without `falls`.
    """

    def __init__(
        self,
        *,
        method: str | dict[str, Any],
        to: float,
        rounds: int = 5,
        shape: Literal["geometric", "linear"] = "geometric",
        option: str = "target.ratio",
        share_of: Literal["first", "last"] | None = None,
        falls: float | None = None,
        by: Literal["file_bytes", "weights_left", "parameters", "macs"] | None = None,
    ) -> None:
        if not 0 < to < 1:
            raise RecipeError(f"to is {to:g}; it is the share of the model that is gone in the end, above 0 and below 1")
        if rounds < 1:
            raise RecipeError(f"there are to be {rounds} rounds of pruning: give 1 or more")
        if falls is not None and not 0 <= falls < float("inf"):
            raise RecipeError(f"falls is {falls:g}; it is how much worse the validation metric may be, zero or more")
        if by is not None and falls is None:
            raise RecipeError(f"by: {by} says which figure is to be small where there is a choice: give falls, how much worse a smaller model may be")
        self.method = {"kind": method} if isinstance(method, str) else copy.deepcopy(method)
        self.option, self.falls = option, falls
        kind = self._checked()
        if share_of is None and kind != "prune.weights":
            raise RecipeError(
                f"compress.{kind}: say whether {option} means a share of the first model (share_of: first), as zeros that stay do, or of the one at hand "
                "(share_of: last), as what is cut does"
            )
        share_of = share_of or "first"
        self.by = by or ("weights_left" if share_of == "first" else "parameters")
        left = [(1 - to) ** (i / rounds) if shape == "geometric" else 1 - to * i / rounds for i in range(rounds + 1)]
        stays = [now if share_of == "first" else now / before for before, now in itertools.pairwise(left)]
        goes = option.rpartition(".")[2] == "ratio"
        self._shares = [round(1 - share if goes else share, 6) for share in stays]
        first = self._filled(self._shares[0])
        check_options(find("compress", kind), {name: value for name, value in first.items() if name != "kind"}, f"compress.{kind}")

    def _checked(self) -> str:
        """The name of the method, its option being one that is left to be filled."""
        if not isinstance(kind := self.method.get("kind"), str):
            raise RecipeError("method has no kind: write a surgery's name, such as prune.weights, or {kind: prune.weights, saliency: obd}")
        kind = full_name("compress", kind)
        known = options(find("compress", kind))
        first, *rest = self.option.split(".")
        if first not in known:
            raise RecipeError(f"no option {first!r} for compress.{kind}{did_you_mean(first, known)}: say in `option` which of them tells it how much to prune")
        held: Any = self.method
        for name in [first, *rest]:
            if not isinstance(held, Mapping):
                raise RecipeError(f"{self.option} of compress.{kind} is filled for every round, and the method says {held!r} there: leave it out")
            if name not in held:
                return kind
            held = held[name]
        raise RecipeError(f"{self.option} of compress.{kind} is filled for every round, and the method says {held!r}: leave it out, and say `to`")

    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return a surgery and a training stage for every round, and the choice where there is one."""
        made: dict[str, dict[str, Any]] = {}
        first = stage.get("init")
        if first is None:
            first = f"{name}-0"
            made[first] = dict(stage)
        last, trained = first, list[str]()
        for number, share in enumerate(self._shares, 1):
            own = name if number == len(self._shares) and self.falls is None else f"{name}-{number}"
            made[f"{name}-{number}-pruned"] = {"kind": "compress", "of": last, "method": self._filled(share)}
            made[own] = {**stage, "model": None, "init": f"{name}-{number}-pruned"}
            trained.append(own)
            last = own
        if self.falls is not None:
            made[name] = {"kind": "choose", "of": trained, "than": first, "within": self.falls, "by": self.by}
        return made

    def _filled(self, share: float) -> dict[str, Any]:
        """The method with the share of a round in its place."""
        method = copy.deepcopy(self.method)
        *way, name = self.option.split(".")
        held: Any = method
        for step in way:
            held = held.setdefault(step, {})
        held[name] = share
        return method
