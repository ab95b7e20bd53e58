"""Cut a model in two at a layer, and let several branches grow from the one trunk.

Shapes: N predictions, m branches; the trunk's answer is `[N, D]`, tokens `[N, T, D]` or maps `[N, D, ...]`.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.tap import layer
from limbeck.core.task import Batch, Task

from ._checks import evaluating
from ._players import begun_anew

__all__ = ["Fork", "Gate", "cut"]

_UNTRACEABLE = (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError, KeyError)  # what user code does with a symbol


class _Tracer(fx.Tracer):
    """Goes into every module but torch's own and the one at which the model is cut."""

    def __init__(self, stop: str) -> None:
        super().__init__()
        self._stop = stop

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self._stop or super().is_leaf_module(m, module_qualified_name)


def cut(model: nn.Module, path: str) -> tuple[fx.Graph, fx.Graph]:
    """Return the graph up to the layer at `path`, which gives what that layer gives and whatever else is read later, and the graph of all that follows.

    Raises:
        RecipeError: no such layer.
        MismatchError: a model that cannot be traced, a layer that does not run or runs twice, nothing to learn after it, or weights on both sides of it.
    """
    layer(model, path, side="student")
    name = type(model).__name__
    modes = {module: module.training for module in model.modules()}
    model.train()  # branches serve training alone, and what asks for the mode is traced as it answers now
    try:
        graph = _Tracer(path).trace(model)
    except _UNTRACEABLE as error:
        why = " ".join(str(error).split())
        raise MismatchError(f"{name} cannot be split, since its forward pass cannot be traced ({why}): write it without decisions about values") from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    nodes = list(graph.nodes)
    ends = [node for node in nodes if node.op == "call_module" and node.target == path]
    if len(ends) != 1:
        ran = "is never called by itself" if not ends else f"runs {len(ends)} times"
        raise MismatchError(f"{name} cannot be split at {path!r}, which {ran}: name a layer that the forward pass runs once")
    after = {ends[0]}
    for node in nodes:
        if any(before in after for before in node.all_input_nodes):
            after.add(node)
    after.remove(ends[0])
    after |= {node for node in nodes if node.op == "get_attr" and node.users and all(user in after for user in node.users)}
    first, second = _held(model, [node for node in nodes if node not in after]), _held(model, [node for node in nodes if node in after])
    if nodes[-1] not in after or not any(one.requires_grad for one in second.values()):
        raise MismatchError(f"nothing that learns follows the layer {path!r} of {name}: split it at an earlier one")
    if both := first.keys() & second.keys():
        shape = tuple(first[both.pop()].shape)
        raise MismatchError(f"{name} cannot be split at {path!r}: a weight of shape {shape} is used before it and after it; split it elsewhere")
    crossing = [ends[0], *(node for node in nodes if node not in after and node is not ends[0] and any(user in after for user in node.users))]
    return _part(nodes, after, crossing, trunk=True), _part(nodes, after, crossing, trunk=False)


def _held(model: nn.Module, nodes: list[fx.Node]) -> dict[int, nn.Parameter]:
    """The parameters that some nodes of a model's graph use, by identity."""
    found: list[nn.Parameter] = []
    for node in nodes:
        if node.op == "call_module":
            found += model.get_submodule(str(node.target)).parameters()
        elif node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            held = getattr(model.get_submodule(owner), leaf)
            found += [held] if isinstance(held, nn.Parameter) else []
    return {id(one): one for one in found}


def _part(nodes: list[fx.Node], after: set[fx.Node], crossing: list[fx.Node], *, trunk: bool) -> fx.Graph:
    """The graph of one side of the cut; what crosses it is what the trunk gives, and what a branch takes."""
    made, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    if not trunk:
        copied = {node: made.placeholder(f"crossing{at}") for at, node in enumerate(crossing)}
    for node in nodes:
        if (node in after) != trunk and node.op != "output":
            copied[node] = made.node_copy(node, copied.__getitem__)
        elif node.op == "output" and not trunk:
            made.output(fx.map_arg(node.args[0], copied.__getitem__))
    if trunk:
        made.output(tuple(copied[node] for node in crossing))
    return made


class Gate(nn.Module):
    """How much each branch counts for an example: softmax(ReLU(norm(W pooled))), the trunk's answer averaged over its places.

    The norm takes the place of a bias. Lan et al. 2018, section 3.2.
    """

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, branches, bias=False)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, features: Tensor) -> Tensor:
        """The trunk's answer to weights `[N, m]`, which sum to one."""
        return self.norm(self.linear(pooled(features))).relu().softmax(-1)


def pooled(features: Tensor) -> Tensor:
    """Average vectors `[N, D]`, tokens `[N, T, D]` or maps `[N, D, ...]` to `[N, D]`."""
    return features if features.dim() == 2 else features.mean(1) if features.dim() == 3 else features.flatten(2).mean(2)


class Fork(nn.Module):
    """One trunk, m branches and their gate; the trunk and the first branch are those of the model itself, which is no part of this module.

    The other branches are copies of what follows the layer at `path`, begun with its weights in random order.
    """

    def __init__(self, model: nn.Module, path: str, branches: int, batch: Batch, task: Task) -> None:
        super().__init__()
        if branches < 2:
            raise RecipeError(f"branches is {branches}: give two or more, the student's own among them")
        self._model, self._path = (model,), path
        self._trunk, self._branch = cut(model, path)
        self.branches = nn.ModuleList(begun_anew(fx.GraphModule(model, self._branch)) for _ in range(branches - 1))
        crossing: list[Any] = []
        with torch.no_grad(), evaluating(model):
            task.forward(_Branch(self, 0, crossing), batch)
        width = crossing[0]
        if not isinstance(width, Tensor) or not width.is_floating_point() or width.dim() < 2:
            told = f"a tensor of shape {list(width.shape)}" if isinstance(width, Tensor) else f"a {type(width).__name__}"
            raise MismatchError(f"the layer {path!r} gives {told}, and branches need features [N, D, ...]: split at another layer")
        self.gate = Gate(pooled(width).shape[1], branches).to(width.device, width.dtype)

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    def ask(self, batch: Batch, task: Task) -> tuple[list[Knowledge], Knowledge]:
        """Return what each branch says of a batch, the model itself first, and what they say together: `z = sum_i g_i z_i`. The trunk runs once.

        Raises:
            MismatchError: a batch of one while the gate learns, answers that are no logits, or predictions that are no examples.
        """
        crossing: list[Any] = []
        said = [task.forward(_Branch(self, index, crossing), batch) for index in range(1 + len(self.branches))]
        if self.training and len(crossing[0]) < 2:
            raise MismatchError("the gate takes its norm over the batch, and the batch has one example: take batch_size 2 or more")
        main = said[0].main
        weights = self.gate(crossing[0])  # [N, m]
        if len(weights) != len(main.logits):
            raise MismatchError(
                f"the layer {self._path!r} gives {len(weights)} rows and the student {len(main.logits)} answers: split it where it has a row for each answer"
            )
        stacked = torch.stack([one.main.logits for one in said], 1)  # [N, m, ...]
        whole = (stacked * weights.view(*weights.shape, *[1] * (stacked.dim() - 2)).to(stacked.dtype)).sum(1)
        return said, Knowledge({"main": Dense(whole, main.link)}, mask=said[0].mask)

    def run(self, index: int, crossing: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a branch on what the trunk gave; where `crossing` is empty, the trunk first."""
        if not crossing:
            bound = inspect.signature(self.model.forward).bind(*args, **kwargs)
            crossing.extend(fx.Interpreter(self.model, graph=self._trunk).run(*bound.args, *bound.kwargs.values()))
        own = [value.clone() if isinstance(value, Tensor) else value for value in crossing]  # a branch may begin with an operation in place
        return fx.Interpreter(self.model, graph=self._branch).run(*own) if index == 0 else self.branches[index - 1](*own)


class _Branch(nn.Module):
    """One branch of a fork as a task asks a model."""

    def __init__(self, fork: Fork, index: int, crossing: list[Any]) -> None:
        super().__init__()
        self._fork, self._index, self._crossing = (fork,), index, crossing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._fork[0].run(self._index, self._crossing, args, kwargs)
