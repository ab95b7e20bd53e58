"""`lenet_300_100`: its parameters and layers."""

import torch

from limbeck.models.lenet_300_100 import LeNet300100


def test_its_parameters_on_28x28_images() -> None:
    assert sum(p.numel() for p in LeNet300100((1, 28, 28), 10).parameters()) == 266_610


def test_it_is_three_matrices_with_relu_between() -> None:
    model = LeNet300100((2, 3, 3), 4).double()
    x = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    state = model.state_dict()
    hidden = (x.reshape(8, 18) @ state["layer1.1.weight"].T + state["layer1.1.bias"]).clamp(min=0)
    hidden = (hidden @ state["layer2.0.weight"].T + state["layer2.0.bias"]).clamp(min=0)
    assert torch.allclose(model(x), hidden @ state["head.weight"].T + state["head.bias"])
    assert len(state) == 6
