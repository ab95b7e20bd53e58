"""Two streams: their mean, and a hallucination that learns a second modality's features."""

import pytest
import torch

from limbeck.core.errors import RecipeError
from limbeck.core.lookup import build
from limbeck.models.cnn import CNN
from limbeck.models.two_stream import TwoStream
from limbeck.objectives.feature.fitnet import FitNet
from limbeck.schemes.offline import Offline
from limbeck.tasks.classify import Classify
from limbeck.teachers.frozen import Frozen


def test_the_answer_is_the_mean_of_both_streams() -> None:
    model = TwoStream((1, 8, 8), 3, of={"kind": "cnn", "width": 4}).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(model(x), (model.own(x) + model.hallucination(x)) / 2)
    assert not torch.equal(model.own(x), model.hallucination(x))


def test_a_hallucination_learns_from_the_other_modality_and_the_own_stream_does_not() -> None:
    torch.manual_seed(0)
    student, teacher = TwoStream((1, 8, 8), 3, of={"kind": "cnn", "width": 4}), CNN((1, 8, 8), 3, width=4)
    hint = FitNet(layers={"hallucination.layer3": "layer3"})
    kd = Offline(student, Frozen(teacher, input="paired"), [hint], Classify())
    batch = {"input": torch.randn(4, 1, 8, 8), "paired": torch.randn(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 0])}
    kd(batch).loss.backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in student.hallucination.layer3.parameters())
    assert all(one.grad is None for one in student.own.parameters())
    other = {**batch, "paired": torch.randn(4, 1, 8, 8)}
    assert not torch.equal(kd(batch).loss, kd(other).loss)


def test_a_stream_is_a_model() -> None:
    with pytest.raises(RecipeError, match=r"option 'of' of models\.two_stream is the model of each stream"):
        TwoStream((1, 8, 8), 3, of={"width": 4})
    with pytest.raises(RecipeError, match="no part 'cn' among models"):
        build("models", "two_stream", {"of": {"kind": "cn"}}, in_shape=(1, 8, 8), classes=3)
