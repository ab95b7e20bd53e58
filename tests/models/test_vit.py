"""`vit`: the published parameter counts, a block against its formula, what can be read of it, and what it refuses."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.bridges.onnx_runtime import run
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.export.onnx import Onnx
from limbeck.models.vit import ViT

SMALL: dict[str, Any] = {"dim": 8, "depth": 4, "heads": 2}


@pytest.mark.parametrize(("dim", "heads", "parameters"), [(192, 3, 5_717_416), (384, 6, 22_050_664), (768, 12, 86_567_656)])
def test_the_parameters_of_deit_and_of_vit_base(dim: int, heads: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ViT((3, 224, 224), 1000, patch=16, dim=dim, depth=12, heads=heads)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_it_is_its_formula(pool: Any) -> None:
    model = ViT((2, 4, 6), 3, patch=2, dim=8, depth=1, heads=2, mlp_ratio=1.5, pool=pool).double()
    p = dict(model.named_parameters())
    for parameter in p.values():
        nn.init.normal_(parameter)
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    patches = [x[:, :, h : h + 2, w : w + 2].flatten(1) @ p["patches.weight"].flatten(1).T + p["patches.bias"] for h in (0, 2) for w in (0, 2, 4)]
    t = torch.stack([*([p["cls"][0, 0].expand(2, 8)] if pool == "cls" else []), *patches], 1) + p["position"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    y = norm(t, "blocks.0.norm1")
    q, k, v = (linear(y, f"blocks.0.attention.{name}") for name in ("query", "key", "value"))
    heads = [(q[..., a] @ k[..., a].transpose(1, 2) / 2).softmax(-1) @ v[..., a] for a in (slice(0, 4), slice(4, 8))]
    t = t + linear(torch.cat(heads, -1), "blocks.0.attention.out")
    t = t + linear(F.gelu(linear(norm(t, "blocks.0.norm2"), "blocks.0.mlp.0")), "blocks.0.mlp.2")
    t = norm(t, "norm")
    assert torch.allclose(model(x), linear(t[:, 0] if pool == "cls" else t.mean(1), "head"))


def test_what_can_be_read() -> None:
    model = ViT((1, 8, 12), 5, **SMALL).eval()
    attention = [f"blocks.0.attention.{name}" for name in ("query", "key", "value", "softmax", "softmax:in")]
    with torch.no_grad(), Tap(model, ["blocks.1", "blocks.2", "blocks.3", *attention, "layer1", "layer2", "layer3", "norm", "pool", "head"]) as tap:
        model(torch.randn(2, 1, 8, 12))
    shapes = {path: tuple(feature.shape[1:]) for path, feature in tap.features.items()}
    assert shapes == {
        "blocks.1": (7, 8), "blocks.2": (7, 8), "blocks.3": (7, 8), **dict.fromkeys(attention[:3], (7, 8)), attention[3]: (2, 7, 7), attention[4]: (2, 7, 7),
        "layer1": (8, 2, 3), "layer2": (8, 2, 3), "layer3": (8, 2, 3), "norm": (7, 8), "pool": (8,), "head": (5,),
    }  # fmt: skip
    probabilities = tap.features[attention[3]]
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 2, 7))
    assert torch.allclose(tap.features[attention[4]].softmax(-1), probabilities)
    for layer, block in (("layer1", "blocks.1"), ("layer2", "blocks.2"), ("layer3", "blocks.3")):
        assert torch.equal(tap.features[layer][:, :, 1, 2], tap.features[block][:, -1]), "the last patch is the last place"
        assert torch.equal(tap.features[layer][:, :, 0, 1], tap.features[block][:, 2])


def test_the_mean_has_no_token_of_its_own_and_few_blocks_few_stages() -> None:
    model = ViT((1, 8, 8), 5, dim=8, depth=2, heads=2, pool="mean")
    assert model.cls is None
    assert model.position.shape == (1, 4, 8)
    assert [name for name, _ in model.named_children() if name.startswith("layer")] == ["layer1", "layer2"]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_it_exports_to_onnx_with_a_free_batch(pool: Any, tmp_path: Path) -> None:
    model = ViT((1, 8, 8), 3, dim=8, depth=1, heads=2, pool=pool).eval()
    Onnx().export(model, torch.randn(2, 1, 8, 8), tmp_path / "model.onnx")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(run(tmp_path / "model.onnx", x)), model(x), atol=1e-5)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"4x4 do not divide images of 6x9; patch may be 1, 3$"):
        ViT((1, 6, 9), 2)
    with pytest.raises(MismatchError, match="at least 4x4, not 2x8"):
        ViT((1, 2, 8), 2)
    with pytest.raises(RecipeError, match="dim 128 does not split into 3 heads; heads may be 1, 2, 4"):
        ViT((1, 8, 8), 2, heads=3)
    with pytest.raises(RecipeError, match="depth is 0"):
        ViT((1, 8, 8), 2, depth=0)
    with pytest.raises(RecipeError, match=r"mlp_ratio is 0\.001"):
        ViT((1, 8, 8), 2, mlp_ratio=0.001)
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        ViT((1, 8, 8), 2, pool=cast(Any, "means"))
