"""Made inputs: noise as a pure function of seed, epoch and id, and the images that a stage has left."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError, DataError, MismatchError
from limbeck.core.lookup import build
from limbeck.core.task import Loader, Task


def task(examples: int = 40, **options: Any) -> Task:
    return build("tasks", "unseen", {"in_shape": [2, 3, 4], "classes": 3, "examples": examples, **options})


def loader(source: Artifact | None = None, options: dict[str, Any] | None = None, examples: int = 40, **how: Any) -> Loader:
    made = build("transfer", "synthesised", options or {}, **({} if source is None else {"source": source}))
    return made.loader(task(examples), **{"batch_size": 8, **how})


def inputs(made: Loader, epoch: int = 0, **how: Any) -> torch.Tensor:
    return torch.cat([batch["input"] for batch in made.batches(epoch, **how)])


def test_noise_is_standard_normal_and_its_numbers_are_independent() -> None:
    x = inputs(loader(examples=20_000, batch_size=1000)).double()
    assert x.shape == (20_000, 2, 3, 4)
    n = x.numel()
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = x.flatten(1)
    correlation = flat.T.corrcoef() - torch.eye(24, dtype=torch.float64)
    assert correlation.abs().max() < 5 / 20_000**0.5
    shares = torch.tensor([(x < edge).double().mean() for edge in (-1.0, 0.0, 1.0)])
    assert torch.allclose(shares, torch.tensor([0.158655, 0.5, 0.841345], dtype=torch.float64), atol=4 / n**0.5)


def test_uniform_noise_is_pixels_preprocessed() -> None:
    made = build("transfer", "synthesised", {"noise": "uniform"})
    x = inputs(made.loader(task(2000, mean=[0.2, 0.5], std=[0.5, 0.25]), batch_size=500)).double()
    for channel, (mean, std) in enumerate(((0.2, 0.5), (0.5, 0.25))):
        raw = x[:, channel] * std + mean
        assert raw.min() > 0 and raw.max() < 1
        assert abs(raw.mean() - 0.5) < 4 * (1 / 12 / raw.numel()) ** 0.5


def test_noise_depends_on_seed_epoch_and_id_alone() -> None:
    whole = inputs(loader(), 3)
    assert torch.equal(whole, inputs(loader(), 3))
    assert torch.equal(whole[16:], inputs(loader(), 3, skip=2))
    assert torch.equal(whole, inputs(loader(batch_size=4), 3))
    ranks = [list(loader(batch_size=4, rank=rank, world=2).batches(3)) for rank in (0, 1)]
    assert torch.equal(whole, torch.cat([batch["input"] for pair in zip(*ranks, strict=True) for batch in pair]))
    assert not torch.equal(whole, inputs(loader(seed=1), 3))
    assert not torch.equal(whole, inputs(loader(), 4))
    ids = torch.cat([batch["id"] for batch in loader().batches(0)])
    assert torch.equal(ids, torch.arange(40))


def test_with_views_epochs_repeat_and_batches_say_which() -> None:
    made = loader(views=2)
    assert torch.equal(inputs(made, 1), inputs(made, 3)) and not torch.equal(inputs(made, 1), inputs(made, 2))
    assert all((batch["view"] == 1).all() for batch in made.batches(3))


def test_the_last_incomplete_batch_is_left_out_but_of_a_whole_pass() -> None:
    assert [len(batch["input"]) for batch in loader(examples=21).batches(0)] == [8, 8]
    made = loader(examples=21, whole=True)
    assert [len(batch["input"]) for batch in made.batches(0)] == [8, 8, 5] and len(made) == 3
    with pytest.raises(DataError, match="batch_size is 8, and there are 5 made examples"):
        loader(examples=5)


@pytest.fixture
def left(tmp_path: Path) -> Artifact:
    save_file({"input": torch.arange(20.0).view(20, 1, 1, 1).expand(20, 2, 3, 4).half().contiguous()}, tmp_path / "synthetic.safetensors")
    return Artifact(tmp_path, {})


def test_images_of_a_stage_come_once_an_epoch_in_an_order_of_its_own(left: Artifact) -> None:
    made = loader(left, batch_size=4)
    first, second = (list(made.batches(epoch)) for epoch in (0, 1))
    for epoch in (first, second):
        ids = torch.cat([batch["id"] for batch in epoch])
        assert sorted(ids.tolist()) == list(range(20))
        assert torch.equal(torch.cat([batch["input"] for batch in epoch])[:, 0, 0, 0], ids.float())
    assert first[0]["id"].tolist() != second[0]["id"].tolist()
    assert first[0]["input"].dtype == torch.float32 and "label" not in first[0]


def test_a_stage_without_images_or_with_others_is_refused(left: Artifact, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"images of \(2, 3, 4\), and the task's inputs are \(1, 8, 8\)"):
        build("transfer", "synthesised", {}, source=left).loader(build("tasks", "unseen", {"in_shape": [1, 8, 8], "classes": 3}), batch_size=4)
    with pytest.raises(ArtifactError, match=r"has no synthetic\.safetensors: name a stage whose scheme makes images"):
        loader(Artifact(tmp_path / "other", {}))
    (tmp_path / "synthetic.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="cannot be read"):
        loader(left)
