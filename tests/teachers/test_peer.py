"""Another player's answers: as they are now, without a trace."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.teacher import Teacher
from limbeck.pipeline.recipe import TeacherSpec
from limbeck.pipeline.resolve import make_teacher
from limbeck.tasks.classify import Classify
from limbeck.teachers.peer import Peer


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


@pytest.fixture
def batch() -> dict[str, Any]:
    made = torch.Generator().manual_seed(7)
    return {"input": torch.randn(6, 4, generator=made), "label": torch.randint(0, 3, (6,), generator=made)}


def peer(player: nn.Module, reads: Reads | None = None) -> Peer:
    made = Peer(player)
    made.prepare(reads or Reads(), Classify())
    return made


def test_it_says_what_the_player_says_in_its_own_mode(batch: Any) -> None:
    player = net()
    for mode in (True, False):
        player.train(mode)
        torch.manual_seed(3)
        said = peer(player)(batch).main.logits
        torch.manual_seed(3)
        assert torch.equal(said, copy.deepcopy(player)(batch["input"])) and not said.requires_grad
        assert player.training is mode


def test_it_says_it_of_the_player_as_it_is_now(batch: Any) -> None:
    player = net().eval()
    asked = peer(player)
    before = asked(batch).main.logits
    with torch.no_grad():
        player.get_parameter("4.bias").add_(1.0)
    torch.testing.assert_close(asked(batch).main.logits, before + 1.0)


def test_the_player_s_statistics_stay_and_no_gradient_comes_to_it(batch: Any) -> None:
    player = net().train()
    before = copy.deepcopy(player.state_dict())
    said = peer(player, Reads(features=frozenset({"0"})))(batch)
    assert all(torch.equal(value, before[name]) for name, value in player.state_dict().items())
    assert not said.feature("0").requires_grad and all(one.grad is None for one in player.parameters())
    player(batch["input"])
    assert not torch.equal(player[1].running_mean, before["1.running_mean"]), "the player's own step would move them"  # pyright: ignore[reportArgumentType]


def test_the_player_is_no_part_of_it(batch: Any) -> None:
    holder = nn.ModuleDict({"player": net(), "peer": Peer(net())})
    assert not list(holder["peer"].parameters()) and not holder["peer"].state_dict()
    whole = nn.ModuleDict({"player": (player := net()), "peer": Peer(player)})
    again = copy.deepcopy(whole)
    assert isinstance(again["peer"], Peer) and again["peer"].player is again["player"] and again["player"] is not player


def test_what_it_cannot_give_is_refused() -> None:
    with pytest.raises(MismatchError, match="takes over the teacher's layer '4', and a peer's layers move"):
        peer(net(), Reads(modules=frozenset({"4"})))
    with pytest.raises(RecipeError, match=r"peer .* has no layer '7'"):
        peer(net(), Reads(features=frozenset({"7"})))


def test_a_recipe_is_told_where_peers_are_made() -> None:
    with pytest.raises(RecipeError, match=r"take scheme: \{kind: mutual, peers: 1\}"):
        make_teacher(TeacherSpec(kind="peer"), [], net(), None)
    with pytest.raises(RecipeError, match="made of no stage: leave `of` out"):
        make_teacher(TeacherSpec(kind="peer", of="teacher"), [net()], net(), None)


def test_several_speak_as_an_ensemble(batch: Any) -> None:
    one, other = net(1).eval(), net(2).eval()
    both: Teacher = build("teachers", "ensemble", {}, [Peer(one), Peer(other)])
    both.prepare(Reads(), Classify())
    mean = (one(batch["input"]).softmax(-1) + other(batch["input"]).softmax(-1)) / 2
    torch.testing.assert_close(both(batch).main.logits.softmax(-1), mean.detach())
