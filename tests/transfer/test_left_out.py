"""Left-out classes never appear, and the bias that makes up for it is where the cross-entropy with the teacher is least."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.transfer.left_out import corrected, matching_bias, raised


def digits(**options: Any) -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 300, **options})


def loader(classes: list[int | str], size: int = 16, of: Task | None = None, **how: Any) -> Any:
    return build("transfer", "left_out", {"classes": classes}).loader(of or digits(), batch_size=size, **how)


def test_they_never_appear_and_the_others_all_do_but_for_the_last_few() -> None:
    everything = next(digits().loader("train", batch_size=300).batches(0))
    kept = int((~torch.isin(everything["label"], torch.tensor([3, 8]))).sum())
    made = loader([3, "8"])
    for epoch in range(4):
        batches = [*made.batches(epoch)]
        labels, ids = (torch.cat([batch[name] for batch in batches]) for name in ("label", "id"))
        assert not torch.isin(labels, torch.tensor([3, 8])).any() and ids.unique().numel() == len(ids)
        assert kept - len(ids) < 2 * 16
    whole = torch.cat([batch["id"] for batch in loader([3, 8], whole=True).batches(0)])
    assert len(whole) == kept and whole.unique().numel() == kept


def test_what_cannot_be_left_out() -> None:
    with pytest.raises(RecipeError, match="there is no class 10"):
        loader([10])
    with pytest.raises(RecipeError, match="there is no class 'three'"):
        loader(["three"])
    with pytest.raises(RecipeError, match="leaves every class out"):
        loader([*range(10)])
    with pytest.raises(DataError, match="too few for a batch of 290: lower batch_size"):
        loader([3], size=290)


def logits(seed: int, lower: float = 0.0) -> torch.Tensor:
    found = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found[:, [1, 4]] -= lower
    return found


@pytest.mark.parametrize("classes", [[1], [1, 4], [4, 1, 0, 2]])
def test_the_frequencies_agree_where_the_cross_entropy_is_least(classes: list[int]) -> None:
    z, t = logits(0, lower=9.0), logits(1)
    bias = matching_bias(z, t, classes)
    assert not bias[[k for k in range(5) if k not in classes]].any()
    torch.testing.assert_close((z + bias).softmax(1).mean(0)[classes], t.softmax(1).mean(0)[classes], atol=1e-8, rtol=0)
    free = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        search.zero_grad()
        found = F.cross_entropy(z.index_add(1, torch.tensor(classes), free.expand(200, -1)), t.softmax(1))
        found.backward()
        return found

    search.step(cost)
    torch.testing.assert_close(bias[classes], free.detach(), atol=1e-4, rtol=1e-4)


def test_a_student_that_is_the_teacher_needs_none_and_a_lowered_one_is_put_back() -> None:
    t = logits(2)
    assert matching_bias(t, t, [2]).abs().max() < 1e-6
    lowered = t.clone()
    lowered[:, 2] -= 3.5
    torch.testing.assert_close(matching_bias(lowered.float(), t.float(), [2]), torch.tensor([0, 0, 3.5, 0, 0]), atol=1e-4, rtol=0)


def test_hopeless_logits_are_answered() -> None:
    far = torch.tensor([[0.0, -500.0]] * 3)
    assert abs(float(matching_bias(far, torch.zeros(3, 2), [1])[1]) - 500) < 1e-3
    with pytest.raises(MismatchError, match="both must be"):
        matching_bias(logits(0), logits(0)[:3], [1])
    with pytest.raises(MismatchError, match="give one or more, but not all"):
        matching_bias(logits(0), logits(0), [])
    with pytest.raises(MismatchError, match="give one or more, but not all"):
        matching_bias(logits(0), logits(0), [5])
    with pytest.raises(DataError, match="not finite"):
        matching_bias(logits(0) * torch.nan, logits(0), [1])


def test_a_corrected_student_says_the_class_as_often_as_its_teacher() -> None:
    torch.manual_seed(0)
    task = digits()
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    made, bias = corrected(student, teacher, task, ["3"])
    held = next(task.loader("validation", batch_size=512).batches(0))["input"]
    found, wanted = made(held).softmax(1).mean(0)[3], teacher(held).softmax(1).mean(0)[3]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(made(held), student(held) + bias)
    assert not made.training and "bias" in made.state_dict()
    with pytest.raises(DataError, match="there is no validation split to choose a bias on; there are: train, test"):
        corrected(student, teacher, digits(validation=0.0), [3])


def test_a_raised_model_ships(tmp_path: Any) -> None:
    model = nn.Linear(2, 3)
    made = raised(model, torch.tensor([0.0, 2.0, 0.0]))
    x = torch.randn(4, 2)
    torch.testing.assert_close(made(x), model(x) + torch.tensor([0.0, 2.0, 0.0]))
    assert {name for name, _ in made.named_parameters()} == {"model.weight", "model.bias"}
