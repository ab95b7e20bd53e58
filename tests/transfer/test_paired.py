"""Partners: the right ones, drawn by seed, epoch and id alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.pipeline.check import check
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.resolve import make_tasks, stage_hashes
from limbeck.pipeline.run import run_recipe
from limbeck.tasks import image
from limbeck.tasks.image import Image
from limbeck.transfer.paired import Paired


def stored(path: Path, labels: list[int], start: float) -> Image:
    """Images that tell their label and their number: all pixels are `start + label`, but for the first, which is the row."""
    images = np.full((len(labels), 4, 4), 0.0, dtype=np.float32) + (start + np.array(labels, dtype=np.float32))[:, None, None]
    images[:, 0, 0] = np.arange(len(labels))
    np.savez(path, x_train=images, y_train=np.array(labels), x_test=images, y_test=np.array(labels))
    return Image(data="npz", root=str(path), validation=0, normalize=False)


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[Image, Image]:
    return stored(tmp_path / "a.npz", [0, 1, 2] * 8, 0.0), stored(tmp_path / "b.npz", [0, 1, 2, 2] * 6, 100.0)


def batches(transfer: Paired, task: Image, epoch: int = 0, **how: Any) -> list[dict[str, torch.Tensor]]:
    return [dict(batch) for batch in transfer.loader(task, batch_size=4, **how).batches(epoch)]


def test_partners_have_the_same_label_and_are_drawn_from_all_of_them(tasks: tuple[Image, Image]) -> None:
    own, other = tasks
    transfer, seen = Paired(other), dict[int, set[int]]()
    for epoch in range(40):
        for batch in batches(transfer, own, epoch):
            assert (batch["paired"][:, 0, 1, 1] - 100).long().equal(batch["label"])
            assert batch["input"][:, 0, 1, 1].long().equal(batch["label"])
            for label, row in zip(batch["label"].tolist(), batch["paired"][:, 0, 0, 0].long().tolist(), strict=True):
                seen.setdefault(label, set()).add(row)
    assert {label: len(rows) for label, rows in seen.items()} == {0: 6, 1: 6, 2: 12}


def test_a_partner_depends_on_seed_epoch_and_id_alone(tasks: tuple[Image, Image]) -> None:
    own, other = tasks

    def partners(epoch: int, **how: Any) -> dict[int, float]:
        found = list(Paired(other).loader(own, **{"batch_size": 4, **how}).batches(epoch))
        return {int(one): float(image[0, 0, 0]) for batch in found for one, image in zip(batch["id"], batch["paired"], strict=True)}

    assert partners(3) == partners(3)
    assert partners(3) == {k: v for rank in (0, 1) for k, v in partners(3, batch_size=2, rank=rank, world=2).items()}
    assert partners(3) != partners(4) and partners(3) != partners(3, seed=1)
    whole = batches(Paired(other), own, 2)
    rest = list(Paired(other).loader(own, batch_size=4).batches(2, skip=3))
    assert all(a[name].equal(b[name]) for a, b in zip(whole[3:], rest, strict=True) for name in a)


def test_by_id_the_partner_is_the_same_example(tasks: tuple[Image, Image], tmp_path: Path) -> None:
    own, _ = tasks
    same = stored(tmp_path / "c.npz", [0, 1, 2] * 8, 50.0)
    for batch in batches(Paired(same, by="id"), own):
        assert batch["paired"][:, 0, 0, 0].long().equal(batch["id"])


def test_missing_partners_are_counted_and_dropped_only_when_asked(tasks: tuple[Image, Image], tmp_path: Path) -> None:
    own, _ = tasks
    few = stored(tmp_path / "few.npz", [0, 1] * 3, 100.0)
    with pytest.raises(MismatchError, match="the task's classes are 0, 1, 2 and its partner's 0, 1"):
        Paired(few).loader(own, batch_size=4)
    with pytest.raises(MismatchError, match=r"18 of 24 training examples have no partner \(id 6, 7, 8 ...\)"):
        Paired(few, by="id").loader(own, batch_size=4)
    kept = torch.cat([batch["id"] for batch in batches(Paired(few, by="id", missing="drop"), own)])
    assert sorted(kept.tolist()) == [0, 1, 2, 3, 4, 5]


def test_labels_are_kept_by_some_of_every_class(tasks: tuple[Image, Image]) -> None:
    own, other = tasks
    found = batches(Paired(other, labelled=6), own)
    kept = torch.cat([batch["label"][batch["labelled"]] for batch in found])
    assert kept.bincount().tolist() == [2, 2, 2]
    assert {int(one) for batch in found for one in batch["id"][batch["labelled"]]} == {
        int(one) for batch in batches(Paired(other, labelled=6), own, 5) for one in batch["id"][batch["labelled"]]
    }
    for labelled, message in ((0, "labelled is 0"), (25, "labelled is 25, and there are 24")):
        with pytest.raises(RecipeError, match=message):
            Paired(other, labelled=labelled).loader(own, batch_size=4)


def test_a_cached_teacher_is_refused(tasks: tuple[Image, Image]) -> None:
    with pytest.raises(MismatchError, match="a cached teacher knows one modality"):
        Paired(tasks[1]).loader(tasks[0], batch_size=4, views=2)


def recipe(a: Path, b: Path) -> dict[str, Any]:
    other = {"kind": "image", "data": "npz", "root": str(b), "validation": 0}
    return {
        "name": "pairs",
        "task": {"kind": "image", "data": "npz", "root": str(a), "validation": 0},
        "stages": {
            "teacher": {"kind": "train", "task": other, "model": {"kind": "mlp", "widths": [4]}, "epochs": 1, "batch_size": 8},
            "student": {
                "kind": "distill", "teacher": {"kind": "frozen", "of": "teacher", "input": "paired"}, "model": {"kind": "mlp", "widths": [4]},
                "transfer": {"kind": "paired", "partner": other}, "epochs": 1, "batch_size": 8, "objectives": [{"kind": "response.kd"}],
            },
        },
        "measure": {"latency": False},
    }  # fmt: skip


def test_a_teacher_of_another_modality_teaches_from_a_recipe(tasks: tuple[Image, Image], tmp_path: Path) -> None:
    tree = recipe(tmp_path / "a.npz", tmp_path / "b.npz")
    assert run_recipe(tree, out=tmp_path / "run", listener=silent).stages["student"]["metrics"]["epochs"] == 1
    loaded = load_recipe(tree)
    digests = {"teacher": "a" * 64}
    first = stage_hashes(loaded, "student", make_tasks(loaded)["student"], digests)
    stored(tmp_path / "b.npz", [0, 1, 2, 1] * 6, 100.0)
    assert stage_hashes(loaded, "student", make_tasks(loaded)["student"], digests) != first  # the partner's data are part of what it depends on
    tree["stages"]["student"]["transfer"] = {"kind": "real"}
    with pytest.raises(MismatchError, match="asked about the field 'paired' and the batch has input, label, id"):
        run_recipe(tree, out=tmp_path / "no", listener=silent)
    tree["stages"]["student"]["transfer"] = {"kind": "paired"}
    with pytest.raises(RecipeError, match="pairs two tasks: name the second one"):
        run_recipe(tree, out=tmp_path / "no", listener=silent)


def test_a_check_reads_the_partner_s_data_once(tasks: tuple[Image, Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = image.read_npz

    def counted(path: Path) -> Any:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(image, "read_npz", counted)
    check(recipe(tmp_path / "a.npz", tmp_path / "b.npz"))
    assert sorted(read) == ["a.npz", "b.npz", "b.npz"]  # the teacher's own task, and the student's partner


def test_a_teacher_of_other_inputs_than_the_partner_gives_is_refused(tasks: tuple[Image, Image], tmp_path: Path) -> None:
    tree = recipe(tmp_path / "a.npz", tmp_path / "b.npz")
    transfer = tree["stages"]["student"]["transfer"]
    transfer["partner"] = {**transfer["partner"], "render": "edges"}
    with pytest.raises(
        MismatchError, match=r"the teacher teacher of stage student was trained on inputs with kind 'image', and is asked about inputs with kind 'edges'"
    ):
        run_recipe(tree, out=tmp_path / "run", listener=silent)
