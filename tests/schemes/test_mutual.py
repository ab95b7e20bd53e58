"""Deep mutual learning: its losses and steps by a naive loop, who learns in which phase, and what ships."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.files import read_json
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.task import Facts
from limbeck.pipeline.check import check
from limbeck.pipeline.modules import load_module
from limbeck.pipeline.run import run_recipe
from limbeck.schemes.mutual import Mutual

FACTS = Facts((4,), 3, ("a", "b", "c"), 64)


def net(seed: int = 0, *layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def objective(kind: str, **options: Any) -> Objective:
    return build("objectives", kind, options)


def taught(temperature: float = 1.0, weight: float = 1.0) -> list[Any]:
    return [weight * objective("response.kd", temperature=temperature), objective("supervised")]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made, dtype=torch.float64), torch.randint(0, 3, (6,), generator=made)


def naive(own: Tensor, others: list[Tensor], labels: Tensor, *, temperature: float = 1.0, mean: bool = False) -> Tensor:
    """Eq. 7 written out, one example, one class and one peer at a time; with `mean`, the peers' mean posterior in the place of each."""
    total = own.new_zeros(())
    for row, label in enumerate(labels.tolist()):
        total = total - own[row].log_softmax(0)[label]
        q = (own[row] / temperature).softmax(0)
        posteriors = [(torch.stack([other[row].softmax(0) for other in others]).mean(0).log() / temperature).softmax(0)]
        posteriors = posteriors if mean else [(other[row] / temperature).softmax(0) for other in others]
        for p in posteriors:
            for c in range(len(q)):
                total = total + temperature**2 * p[c].detach() * (p[c].detach().log() - q[c].log()) / len(posteriors)
    return total / len(labels)


def step(model: nn.Module, loss: Tensor) -> None:
    for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        parameter.data.sub_(0.5 * gradient)


@pytest.mark.parametrize("peers", [1, 2])
@pytest.mark.parametrize("teach", ["each", "mean"])
def test_losses_and_steps_are_those_of_algorithm_1(peers: int, teach: Any, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    nets = [net(seed) for seed in range(1 + peers)]
    plain = copy.deepcopy(nets)
    scheme = Mutual(nets[0], None, taught(2.0), example=batch, peers=list(nets[1:]), teach=teach)
    assert list(scheme.phases) == ["student", "peer1", "peer2"][: 1 + peers]
    for _ in range(2):
        for at, phase in enumerate(scheme.phases):
            others = [other(x) for other in plain if other is not plain[at]]
            expected = naive(plain[at](x), others, y, temperature=2.0, mean=teach == "mean" and peers > 1)
            found = scheme(batch, phase)
            torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-12)
            step(plain[at], expected)
            step(nets[at], found.loss)
        scheme.after_step()
    for ours, theirs in zip(nets, plain, strict=True):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_at_temperature_1_the_mean_posterior_and_the_mean_divergence_differ_by_the_peers_disagreement(batch: tuple[Tensor, Tensor]) -> None:
    """mean_l KL(p_l || q) - KL(mean p || q) is the Jensen-Shannon divergence of the peers, whatever q: the same gradient."""
    x, _ = batch
    nets = [net(seed) for seed in range(3)]
    made = {teach: Mutual(nets[0], None, taught(), example=batch, peers=list(nets[1:]), teach=teach) for teach in ("each", "mean")}
    losses = {teach: scheme(batch).loss for teach, scheme in made.items()}
    gradients = [torch.autograd.grad(loss, list(nets[0].parameters())) for loss in losses.values()]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    p = torch.stack([other(x).softmax(-1) for other in nets[1:]])

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.log()).sum(-1)

    apart = (entropy(p.mean(0)) - entropy(p).mean(0)).mean()
    torch.testing.assert_close(losses["each"] - losses["mean"], apart)
    assert apart > 1e-4


def test_parts_bear_their_player_s_name(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Mutual(net(), None, taught(), example=batch, peers=[net(1), net(2)])
    assert scheme(batch).parts.keys() == {"kd", "supervised"}
    found = scheme(batch, "peer2")
    assert found.parts.keys() == {"peer2_kd", "peer2_supervised", "peer2_loss"} and found.sums.keys() == {"peer2"}
    torch.testing.assert_close(found.parts["peer2_loss"], found.parts["peer2_kd"] + found.parts["peer2_supervised"])


def test_a_batch_counts_once_in_each_player_s_statistics(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Mutual(net(0, nn.BatchNorm1d(5)), None, taught(), example=batch, peers=[net(1, nn.BatchNorm1d(5)), net(2, nn.BatchNorm1d(5))])
    for phase in scheme.phases:
        scheme(batch, phase)
    counts = [module.num_batches_tracked.item() for module in scheme.modules() if isinstance(module, nn.BatchNorm1d) and module.num_batches_tracked is not None]
    assert counts == [1, 1, 1]


def test_peers_of_the_student_s_kind_begin_elsewhere_with_weights_of_the_same_size(batch: tuple[Tensor, Tensor]) -> None:
    student = net(0, nn.BatchNorm1d(5))
    student[2].bias.requires_grad_(False)
    torch.manual_seed(1)
    ships = Mutual(student, None, taught(), example=batch, peers=2).shipped()
    assert list(ships) == ["student", "peer1", "peer2"] and ships["student"] is student
    weights = [one.state_dict()["0.weight"] for one in ships.values()]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(weights[one], weights[other])
        assert torch.equal(weights[one].flatten().sort().values, weights[other].flatten().sort().values)
    assert torch.equal(ships["peer1"].state_dict()["1.weight"], torch.ones(5, dtype=torch.float64))
    assert torch.equal(ships["peer1"].state_dict()["2.bias"], ships["student"].state_dict()["2.bias"]), "what does not learn stays"


def test_peers_of_another_architecture_match_features_by_a_projector_each(batch: tuple[Tensor, Tensor]) -> None:
    student = build("models", "mlp", {"widths": [5]}, in_shape=(4,), classes=3)
    terms = [objective("feature.fitnet", layers={"layer1": "layer1"}), objective("supervised")]
    peers: list[Any] = [{"kind": "mlp", "widths": [7]}, {"kind": "mlp", "widths": [7, 6]}]
    back = Mutual(student, None, terms, example=(batch[0].float(), batch[1]), facts=FACTS, peers=peers)
    players = back.players()
    assert back.specs() == {"peer1": {"kind": "mlp", "widths": [7]}, "peer2": {"kind": "mlp", "widths": [7, 6]}}
    assert len(players["student"]) > len(list(back.shipped()["student"].parameters())), "projectors learn with the student"
    assert len({id(one) for several in players.values() for one in several}) == sum(map(len, players.values()))
    assert {id(one) for one in back.parameters()} == {id(one) for several in players.values() for one in several}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": 0}, "peers is 0: nobody to learn with"),
        ({"peers": []}, "nobody to learn with"),
        ({"peers": [{"width": 8}]}, r"peers\[0\] names no kind of model"),
        ({"peers": [{"kind": "mlp", "wdiths": [3]}]}, "did you mean 'widths'"),
        ({"peers": [{"kind": "cnn"}]}, "CNN reads images"),
        ({"facts": None, "peers": [{"kind": "mlp"}]}, "give the scheme facts=task.facts"),
        ({"objectives": [objective("supervised")]}, "teaches nobody: add one that asks a teacher"),
        ({"objectives": []}, "without objectives has nothing to learn"),
        ({"teacher": net(5)}, "nobody teaches but those who learn"),
        ({"objectives": [objective("adversarial.logit_discriminator")]}, "is a contest with an opponent of its own"),
        ({"objectives": [objective("feature.simkd")]}, "puts a part of a finished teacher into the student"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str, batch: Any) -> None:
    given: dict[str, Any] = {"teacher": None, "objectives": taught(), "facts": FACTS, **options}
    with pytest.raises((RecipeError, MismatchError), match=message):
        Mutual(net().float(), given.pop("teacher"), given.pop("objectives"), None, (batch[0].float(), batch[1]), given.pop("facts"), **given)


def test_players_that_share_a_weight_are_refused(batch: Any) -> None:
    student = net()
    with pytest.raises(MismatchError, match="peer1 and student share a parameter"):
        Mutual(student, None, taught(), example=batch, peers=[nn.Sequential(student[0], nn.Tanh(), nn.Linear(5, 3).double())])
    with pytest.raises(RecipeError, match="no phase 'peer2'; did you mean 'peer1'"):
        Mutual(student, None, taught(), example=batch)(batch, "peer2")


def tree(epochs: int = 2, **scheme: Any) -> dict[str, Any]:
    alone = {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": epochs, "batch_size": 32}
    mutual = {
        "objectives": [{"kind": "response.kd", "temperature": 1.0}, {"kind": "supervised"}],
        "scheme": {"kind": "mutual", "peers": [{"kind": "mlp", "widths": [12]}], **scheme},
        "optimizers": {"peer1": {"kind": "adam", "lr": 0.003}},
    }
    task = {"kind": "image", "data": "digits", "subset": 256}
    return {"name": "toy", "task": task, "stages": {"alone": alone, "student": {**alone, **mutual}}, "measure": {"latency": False}}


def test_a_recipe_gives_each_peer_its_artifact_its_own_figures_and_more_epochs(tmp_path: Path) -> None:
    done = run_recipe(tree(), out=tmp_path, listener=silent)
    artifact = Artifact.open(tmp_path / "stages" / "student")
    peer = artifact.players["peer1"]
    assert peer.spec["options"]["widths"] == [12] and load_module(peer)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    row = read_json(artifact.path / "history.json")["epochs"][artifact.metrics["best_epoch"] - 1]
    for one, player in ((artifact, "student"), (peer, "peer1")):
        assert one.metrics["validation_accuracy"] == row[f"validation_{player}_accuracy"]
        assert not [name for name in one.metrics if "peer1" in name or "student" in name]
    assert row["parts"].keys() == {"kd", "supervised", "peer1_kd", "peer1_supervised", "peer1_loss"}
    assert done.stages["student"]["metrics"]["accuracy"] != peer.metrics["accuracy"]
    roles = read_json(tmp_path / "run.json")["roles"]
    assert (roles["student"], roles["alone"], roles["teacher"]) == ("student", "alone", None)
    notes: list[Any] = []
    more = run_recipe(tree(3), out=tmp_path, listener=notes.append)
    assert not more.stages["student"]["reused"]
    assert any("goes on from epoch 2" in getattr(one, "text", "") for one in notes)


def test_a_peer_that_cannot_be_is_refused_before_the_first_step() -> None:
    with pytest.raises(RecipeError, match=r"no part 'clown' among models"):
        check(tree(peers=[{"kind": "clown"}]))
    with pytest.raises(RecipeError, match=r"no option 'techa' for schemes\.mutual; did you mean 'teach'"):
        check(tree(techa="each"))
