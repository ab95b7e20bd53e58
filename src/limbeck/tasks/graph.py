"""Classification of the nodes of one graph: the citation graphs Cora, CiteSeer and PubMed with their public split.

Shapes: M nodes, F features, C classes, E directed edges.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, How, Loader, Split, Task

from ._fingerprint import files_hash
from ._planetoid import UNLABELLED, Citations, planetoid_files, read_planetoid

__all__ = ["Graph"]

Data = Literal["cora", "citeseer", "pubmed"]
_FOLDER = "graph-planetoid"


class _Whole(Loader):
    """The whole graph, once an epoch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        yield from [dict(self._batch)][skip:]


class Graph(Task):
    """Classification of the nodes of one graph, which is given whole, as one batch an epoch; `batch_size` does not matter.

    A batch is `input [M, F]` float32, `edge_index [2, E]` int64 (source, target; each edge in both directions, without self-loops), `label [M]`, `id [M]`,
    `mask [M]`: which predictions count, and `labelled [M]`: which have a label. Of validation and test those are the split's nodes. Of training the labelled
    nodes count, or all of them: a teacher knows something of every node, and the labels of the others are no part of it. Objectives that read labels
    (`supervised`, `response.dkd`) stay means over the labelled nodes. An unlabelled node that counts has the label -1, one that does not count the label 0.
    A model whose forward pass has a parameter `edge_index` is given the edges; another sees each node by itself, so that a perceptron can learn from a graph.

    The public split of Yang et al. 2016, arXiv:1603.08861: 20 labelled nodes of each class for training, the next 500 for validation, 1000 for testing.

    Args:
        data: cora, citeseer or pubmed.
        root: the folder that holds the files ind.NAME.*, or graph-planetoid/ with them.
        teach: all, or labelled: which nodes a student is asked about while it is taught.
        validation: how many nodes after the training nodes are the validation split; 0 for none.
        normalize: divide each node's features by their sum.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing or damaged, or do not belong together.
    """

    def __init__(
        self, *, data: Data = "cora", root: str | None = None, teach: Literal["all", "labelled"] = "all", validation: int = 500, normalize: bool = True
    ) -> None:
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.graph{did_you_mean(data, get_args(Data))}")
        if teach not in ("all", "labelled"):
            raise RecipeError(f"teach is {teach!r} for tasks.graph; it is 'all' or 'labelled'")
        if not root:
            raise RecipeError(f"data {data!r} needs `root`: the folder that holds the data")
        if validation < 0:
            raise RecipeError(f"validation is {validation}; it is a number of nodes, 0 or more")
        self._data, self._root, self._all, self._validation, self._normalize = data, Path(root), teach == "all", validation, normalize
        self._made: dict[tuple[Split, torch.device], Batch] = {}

    @cached_property
    def _files(self) -> list[Path]:
        if not self._root.is_dir():
            raise DataError(f"{self._root} is no folder: set `root` to the folder that holds {_FOLDER}/")
        inner = self._root / _FOLDER
        return planetoid_files(inner if inner.is_dir() else self._root, self._data)

    @cached_property
    def _graph(self) -> Citations:
        graph = read_planetoid(self._files)
        if self._validation > graph.others:
            raise DataError(f"validation is {self._validation}, and {self._data} has {graph.others} nodes that are for neither training nor testing")
        return graph

    @cached_property
    def _input(self) -> Tensor:
        features = torch.from_numpy(self._graph.features)
        total = features.sum(1, keepdim=True)
        return torch.where(total != 0, features / total, features) if self._normalize else features

    @cached_property
    def _fingerprint(self) -> str:
        files = files_hash({path.name: path for path in self._files})
        return digest({"task": "graph", "options": [self._data, self._all, self._validation, self._normalize], "files": files})

    def _rows(self, split: Split) -> Tensor:
        """Which nodes are a split's, `[M]`."""
        graph = self._graph
        if split == "validation" and not self._validation:
            raise DataError("there is no validation split: set `validation` above 0")
        chosen = {
            "train": torch.arange(graph.train),
            "validation": torch.arange(graph.train, graph.train + self._validation),
            "test": torch.from_numpy(graph.test),
        }[split]
        return torch.zeros(len(graph.labels), dtype=torch.bool).index_fill_(0, chosen, True)

    def facts(self) -> Facts:
        graph = self._graph
        names = tuple(str(number) for number in range(graph.classes))
        return Facts((graph.features.shape[1],), graph.classes, names, graph.train, preprocess={"kind": "graph"})

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own and of every option that says what is made of them; where the files lie does not matter."""
        return self._fingerprint

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        """The whole graph as one batch, whatever `batch_size` and `seed` say.

        `views` and `whole` change nothing: nothing is augmented, and the graph is whole.

        Raises:
            MismatchError: more than one process.
        """
        if (world := how.get("world", 1)) > 1:
            raise MismatchError(f"a graph is one batch, and {world} processes would all train on it: set runtime.devices to 1")
        key = (split, how.get("device") or torch.device("cpu"))
        if key not in self._made:
            mine = self._rows(split)
            labels = torch.from_numpy(self._graph.labels)
            counts = torch.ones_like(mine) if split == "train" and self._all else mine
            made = {
                "input": self._input,
                "edge_index": torch.from_numpy(self._graph.edges),
                "label": torch.where(mine, labels, torch.where(counts, UNLABELLED, 0)),
                "mask": counts,
                "labelled": mine,
                "id": torch.arange(len(labels)),
            }
            self._made[key] = {name: value.to(key[1]) for name, value in made.items()}
        return _Whole(self._made[key])

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation", "test") if self._validation else ("train", "test")

    def batch(self, raw: object) -> Batch:
        """Return a mapping as it is.

        Raises:
            MismatchError: no mapping, or one without nodes and edges.
        """
        if not isinstance(raw, Mapping) or not {"input", "edge_index"} <= raw.keys():
            told = f"has the fields {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"is a {type(raw).__name__}"
            raise MismatchError(f"a batch of tasks.graph is a mapping with input [M, F] and edge_index [2, E], and this one {told}")
        return raw

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        x = batch["input"]
        logits = model(x, batch["edge_index"]) if _takes_edges(model) else model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            told = f"logits of shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise MismatchError(f"the model gives {told} for {len(x)} nodes; it must give a tensor [{len(x)}, C]")
        return Knowledge({"main": Dense(logits)}, mask=batch.get("mask"))

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        labelled, each = self._costs(knowledge, batch)
        return torch.where(labelled, each, 0.0)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        labelled, each = self._costs(knowledge, batch)
        right = knowledge.main.logits.argmax(-1) == batch["label"]
        return {"accuracy": right[labelled].float(), "loss": each[labelled]}

    @staticmethod
    def _costs(knowledge: Knowledge, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which nodes count and are labelled, and each node's cross-entropy, `[M]`."""
        if "label" not in batch:
            raise MismatchError(f"the batch has no labels (fields {', '.join(batch)}), and the task's loss needs them")
        labels, logits = batch["label"], knowledge.main.logits
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        labelled = labels >= 0 if knowledge.mask is None else (labels >= 0) & knowledge.mask
        return labelled, F.cross_entropy(logits, labels.clamp(min=0), reduction="none")


def _takes_edges(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(one.name == "edge_index" or one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
