"""A fresh model that begins with what fits of another."""

import itertools

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.pipeline.grown import begun


def net(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def test_what_has_the_same_name_and_shape_is_taken_over_and_the_rest_is_named() -> None:
    start, model = net(4, 8, 3), net(4, 8, 5)
    before = model[1].weight.clone()
    assert begun(model, start, "teacher") == "begins with 2 of 4 tensors of teacher; fresh are 1.weight, 1.bias"
    assert torch.equal(model[0].weight, start[0].weight) and torch.equal(model[1].weight, before)
    assert begun(net(4, 8, 3), start, "teacher") == "begins with 4 of 4 tensors of teacher"


def test_a_model_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"what fits of teacher, and no weight of it does: Sequential has 0\.weight"):
        begun(net(5, 9), net(4, 8), "teacher")
