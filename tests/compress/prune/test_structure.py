"""What structural pruning has in common: the transaction, targets, scopes, groups."""

import json
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.bridges.torch_pruning import Port, couplings
from limbeck.compress import Bench
from limbeck.compress.prune._budget import Wish, search, wish
from limbeck.compress.prune._groups import Family, families, keeps
from limbeck.compress.prune._shapes import narrow, rebuilt, shapes_record
from limbeck.compress.prune._structure_check import witness
from limbeck.compress.prune._structure_choice import Chooser
from limbeck.compress.prune._structure_scores import scores
from limbeck.compress.prune.channels import Channels
from limbeck.compress.prune.saliency.magnitude import Magnitude
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


def bench_of(shape=(1, 8, 8), classes=3, latency=None, examples=24):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, *shape, generator=generator), torch.arange(examples) % classes
    return Bench(
        Classify({"train": [(x, y)]}, classes=classes),
        macs=lambda model: macs(model, x[:1]),
        latency_ms=latency or (lambda _: math.nan),
        score=lambda _: math.nan,
    )


def unit_families(model, shape=(1, 8, 8)):
    x = torch.randn(2, *shape)
    return families(model, couplings(model, lambda made: [made(x)]))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


class Chain(nn.Module):
    """conv1 - conv2 - pool - head, with something between the convolutions."""

    def __init__(self, between=None, second=None, wide=8):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, wide, 3, padding=1)
        self.between = between or nn.ReLU()
        self.conv2 = second or nn.Conv2d(wide, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
        self.eval()

    def forward(self, x):
        return self.head(self.conv2(self.between(self.conv1(x))).mean((2, 3)))


class WrittenDown(nn.Module):
    """A view of a size that only the whole model has."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Linear(8 * 16, 3)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x).relu()).relu().view(-1, 8 * 16))


class Shuffle(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Swap(nn.Module):
    """Puts channels in another order, whatever their number."""

    def forward(self, x):
        return x.flip(1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (WrittenDown(), (1, 8, 8), ["WrittenDown", "conv2", "view", "skip: [conv2]"]),
        (Chain(Shuffle()), (1, 8, 8), ["between", "conv1", "skip: [conv1]"]),
        (Chain(Swap()), (1, 8, 8), ["runs with fewer channels, but wrongly", "'conv2'", "skip: [conv1]"]),
        (Tied(), (1, 1, 6), ["first.weight", "second.weight", "tied", "skip: [first]"]),
        (
            Chain(nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 9, 1, groups=3), wide=6),
            (1, 8, 8),
            ["the 2 groups of 'between'", "the 3 groups of 'conv2'", "all 6", "skip: [between]"],
        ),
    ],
    ids=["view", "shuffle", "reorder", "tied", "groups"],
)
def test_a_culprit_is_named_and_the_model_left_as_it_was(model, shape, words):
    if words[-1] == "skip: [between]":
        model.head = nn.Linear(9, 3)
    model.eval()
    before = state(model)
    with pytest.raises(MismatchError) as caught:
        Channels(target={"ratio": 0.3}, least=1).operate(model, bench_of(shape))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert unchanged(model, before)


def test_what_is_skipped_is_no_culprit():
    model = WrittenDown().eval()
    done = Channels(target={"ratio": 0.3}, skip=("conv2",)).operate(model, bench_of())
    assert [(row["name"], row["left"]) for row in done.layers if row["name"] != "head"] == [("conv1", 4)]
    model = Chain(Shuffle())
    made = Channels(target={"ratio": 0.3}, skip=("conv1",)).operate(model, bench_of()).model
    assert made.conv1.out_channels == 8 and made.conv2.out_channels < 8


def test_layers_in_a_skipped_container_are_skipped_and_an_unknown_one_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 3)).eval()
    made = Channels(target={"ratio": 0.5}, skip=("0",)).operate(model, bench_of()).model
    assert made[0][0].out_channels == 8 and made[1].out_channels == 4
    with pytest.raises(RecipeError, match="no layer 'conv'"):
        Channels(target={"ratio": 0.5}, skip=("conv",)).operate(model, bench_of())


class Concat(nn.Module):
    """A sum of one branch and a concatenation of two, flattened: ties at offsets."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(1, 7, 1)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7 * 64, 3)

    def forward(self, x):
        return self.head((self.norm(torch.cat([self.a(x), self.b(x)], 1)) + self.c(x)).relu().flatten(1))


def test_a_concatenation_ties_channels_at_their_offset():
    model = Concat().eval()
    found, whole = unit_families(model)
    assert {family.gives: family.units for family in found} == {("a", "c"): 3, ("b", "c"): 4}
    assert whole == {"head": "it is what the model answers"}
    second = next(family for family in found if "b" in family.gives)
    assert second.places[Port("c", "out")].tolist() == [[3], [4], [5], [6]]
    assert second.places[Port("head", "in")][0].tolist() == list(range(3 * 64, 4 * 64))
    made = deepcopy(model)
    narrow(made, keeps(model, [(second, torch.tensor([0, 2]))]))
    kept = torch.tensor([0, 1, 2, 4, 6])
    assert torch.equal(made.c.weight, model.c.weight[kept]) and torch.equal(made.norm.running_var, model.norm.running_var[kept])
    assert torch.equal(made.b.weight, model.b.weight[[1, 3]]) and torch.equal(made.a.weight, model.a.weight)
    assert torch.equal(made.head.weight, model.head.weight.view(3, 7, 64)[:, kept].flatten(1))


class Gated(nn.Module):
    """Halves of one layer's channels, one of them the gate of the other."""

    def __init__(self):
        super().__init__()
        self.both, self.out, self.head = nn.Conv2d(1, 12, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        one, gate = self.both(x).chunk(2, 1)
        return self.head(self.out(one * gate.sigmoid()).mean((2, 3)))


def test_halves_of_a_gate_go_together():
    model = Gated().eval()
    found, _ = unit_families(model)
    assert found[0].places[Port("both", "out")].tolist() == [[c, c + 6] for c in range(6)]
    made = Channels(target={"ratio": 0.4}).operate(model, bench_of()).model
    assert made.both.out_channels == 2 * made.out.in_channels


@pytest.mark.parametrize(
    ("between", "reads", "counts"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, ("in_channels", "out_channels", "groups")),
        (nn.Conv2d(8, 16, 3, padding=1, groups=8), 16, ("in_channels", "groups")),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), 8, ("out_channels",)),
        (nn.GroupNorm(4, 8), 8, ("num_channels",)),
        (nn.InstanceNorm2d(8, affine=True), 8, ("num_features",)),
        (nn.PReLU(8), 8, ("num_parameters",)),
        (nn.PReLU(), 8, ()),
        (nn.ConvTranspose2d(8, 8, 2, stride=2), 8, ("out_channels",)),
    ],
    ids=["depthwise", "multiplied", "grouped", "group norm", "instance norm", "prelu", "one prelu", "transposed"],
)
def test_layers_of_every_kind_lose_channels_and_compute_what_they_should(between, reads, counts):
    model = Chain(between, nn.Conv2d(reads, 8, 3, padding=1))
    for parameter in between.parameters():
        nn.init.normal_(parameter)
    done = Channels(target={"ratio": 0.5}, scope="local").operate(model, bench_of())
    made = done.model
    assert made.conv1.out_channels == 4 and made.conv2.out_channels == 4
    assert all(getattr(made.between, name) < getattr(between, name) for name in counts)
    again = rebuilt(Chain(deepcopy(between), nn.Conv2d(reads, 8, 3, padding=1)), json.loads(json.dumps(done.record))["layers"])
    again.load_state_dict(made.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.eval()(x), made(x))


def test_a_layer_that_cannot_be_cut_is_left_whole_and_said():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm, self.hidden, self.head = nn.Linear(8, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.hidden(self.lstm(self.embed(x[:, 0]))[0][:, -1]).relu())

    done = Channels(target={"ratio": 0.5}).operate(Recurrent().eval(), bench_of())
    assert done.model.embed.out_features == 6 and done.model.hidden.out_features == 3
    assert any("embed" in line and "lstm (LSTM), which cannot be cut" in line for line in done.said)


def test_bare_sequences_are_flattened_where_a_linear_layer_reads_them_elsewhere():
    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.conv, self.head = nn.Linear(8, 8), nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6 * 8, 3)

        def forward(self, x):
            return self.head(self.conv(self.each(x[:, 0]).transpose(1, 2)).relu().flatten(1))

    model = Signals().eval()
    made = Channels(target={"ratio": 0.5}, scope="local").operate(model, bench_of()).model
    assert made.conv.out_channels == 3 and made.head.in_features == 24 and made.each.out_features == 4


def test_the_witness_reads_nothing_of_what_went_and_norms_over_the_rest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    nn.init.normal_(model[1].weight)
    kept = torch.tensor([0, 2, 3, 5])
    made = witness(model, {Port("0", "out"): kept, Port("1", "through"): kept, Port("2", "in"): kept})
    x = torch.randn(5, 4)
    hidden = F.layer_norm(model[0](x)[:, kept], (4,), model[1].weight[kept], model[1].bias[kept])
    assert torch.allclose(made(x), hidden @ model[2].weight[:, kept].T + model[2].bias, atol=1e-6)


def test_a_record_of_another_model_or_of_no_shapes_is_refused():
    model = Chain()
    record = shapes_record(Chain(), Channels(target={"ratio": 0.5}).operate(model, bench_of()).model)
    with pytest.raises(ArtifactError, match=r"a layer 'conv1', and Sequential has none"):
        rebuilt(nn.Sequential(nn.Linear(2, 2)), record)
    for change, words in [
        ({"attributes": {"forward": 3}}, "no size of it"),
        ({"attributes": {"out_channels": "3"}}, "no size of it"),
        ({"tensors": {"weight": [3, 0, 3, 3]}}, "does not fit"),
        ({"tensors": {"weight": [3]}}, "does not fit"),
        ({"tensors": {"weight": [10**6, 1, 3, 3]}}, "larger than it is"),
    ]:
        with pytest.raises(ArtifactError, match=words):
            rebuilt(Chain(), {"conv1": {"attributes": {}, "tensors": {}} | change})


def family(name, units, kinds=(("Conv2d", "out"),)):
    return Family({Port(name, "out"): torch.arange(units)[:, None]}, (name,), kinds)


def left(chosen):
    return {one.name: one.units - len(gone) for one, gone in chosen}


def test_scopes_rank_all_units_those_of_a_layer_or_those_of_layers_alike():
    small, large, other = family("small", 4), family("large", 4), family("other", 4, (("Linear", "out"),))
    judged = [(small, torch.tensor([1.0, 2.0, 3.0, 4.0])), (large, torch.tensor([5.0, 6.0, 7.0, 8.0])), (other, torch.tensor([20.0, 21.0, 22.0, 23.0]))]
    everything = Chooser(judged, "global", 1)
    assert left(everything.at(3, 1)) == {"small": 1, "large": 4, "other": 4}
    assert left(everything.at(everything.steps, 1)) == {"small": 1, "large": 1, "other": 1}
    local = Chooser(judged, "local", 1)
    assert left(local.at(1, 1)) == {"small": 3, "large": 3, "other": 3}
    alike = Chooser(judged, "isomorphic", 1)
    halved = [left(alike.at(step, 1)) for step in range(alike.steps + 1)]
    assert {"small": 1, "large": 4, "other": 3} in halved  # of 6 and of 3 units, a third and more
    assert halved[0] == {"small": 4, "large": 4, "other": 4}


def test_the_highest_stay_and_come_back_first_when_counts_are_rounded():
    one = family("one", 10)
    chooser = Chooser([(one, torch.tensor([3.0, 9.0, 1.0, 8.0, 2.0, 7.0, 6.0, 5.0, 4.0, 0.0]))], "global", 2)
    [(_, gone)] = chooser.at(5, 1)
    assert gone.tolist() == [0, 2, 4, 8, 9]
    [(_, gone)] = chooser.at(5, 4)
    assert gone.tolist() == [2, 9]  # 5 left, rounded to 8
    [(_, gone)] = chooser.at(chooser.steps, 1)
    assert sorted(set(range(10)) - set(gone.tolist())) == [1, 3]


def test_scores_are_totals_over_all_that_goes_with_a_unit():
    model = Chain()
    found, _ = unit_families(model)
    [(_, first), _], _ = scores(model, found, Magnitude(), "all", "none", bench_of())
    naive = [
        sum(abs(w.item()) for w in [*model.conv1.weight[c].flatten(), model.conv1.bias[c], *model.conv2.weight[:, c].flatten()])
        for c in range(8)
    ]  # fmt: skip
    assert torch.allclose(first, torch.tensor(naive, dtype=torch.float64), rtol=1e-5)
    [(_, made), _], _ = scores(model, found, Magnitude(), "filters", "max", bench_of())
    filters = model.conv1.weight.abs().sum((1, 2, 3)).double()
    assert torch.allclose(made, filters / filters.max(), rtol=1e-5)
    [(_, matrices), _], _ = scores(model, found, Magnitude(), "matrices", "mean", bench_of())
    both = filters + model.conv2.weight.abs().sum((0, 2, 3)).double()
    assert torch.allclose(matrices, both / both.mean(), rtol=1e-5)


@pytest.mark.parametrize(("goal", "share"), [("macs", 0.4), ("parameters", 0.4), ("bytes", 0.4), ("latency", 0.6)])
def test_a_target_is_met_and_hardly_more_goes(goal, share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 3)).eval()
    asked: list[int] = []

    def latency(made):
        asked.append(1)
        return sum(parameter.numel() for parameter in made.parameters()) / 1e3

    bench = bench_of(latency=latency)
    done = Channels(target={goal: share}, round_to=1).operate(model, bench)
    count = Wish(goal, share).count
    reached = count(done.model, bench) / count(model, bench)
    assert share - 0.08 < reached <= share
    assert f"{reached:.3g} of its {goal} stays, {share:g} was asked for" in done.said[0]
    assert len(asked) <= 12
    if goal != "latency":
        units = done.metrics["units_left"]
        with pytest.raises(RecipeError, match=r"above 0 and below 1, not 1"):
            wish({goal: 1.0}, "prune.channels")
        assert units == sum(row["left"] for row in done.layers if row["name"] != "4")


def test_latency_rounds_to_the_multiple_that_ran_fastest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 3)).eval()

    def latency(made):
        return sum(-(-layer.out_channels // 16) * 16 for layer in (made[0], made[2]))  # a machine that computes 16 channels at a time

    done = Channels(target={"latency": 0.5}).operate(model, bench_of(latency=latency))
    assert all(layer.out_channels % 16 == 0 for layer in (done.model[0], done.model[2]))
    assert latency(done.model) <= 64
    assert "multiples of 16, which ran fastest here" in done.said[0]


def test_a_target_that_cannot_be_reached_says_the_closest_that_can():
    model = Chain()
    with pytest.raises(RecipeError, match=r"macs: 0.01 cannot be reached: with all gone that may go, 0\.\d+ of it stays, and that is the closest; .*least"):
        Channels(target={"macs": 0.01}).operate(model, bench_of())
    with pytest.raises(RecipeError, match=r"ratio: 0.9 cannot be reached: with all gone that may go, 0.75 goes"):
        Channels(target={"ratio": 0.9}).operate(model, bench_of())


@pytest.mark.parametrize(
    ("target", "words"),
    [({}, "given is none"), ({"macs": 0.5, "ratio": 0.5}, "2 goals"), ({"macs": 1.5}, "below 1"), ({"ratio": 0.0}, "above 0"), ({"macs": math.nan}, "share")],
)
def test_a_target_that_cannot_be_meant_is_refused(target, words):
    with pytest.raises(RecipeError, match=words):
        Channels(target=target)


def test_the_search_finds_the_first_step_that_meets_the_target():
    asked: list[int] = []

    def cost(step):
        asked.append(step)
        return 100 - step

    assert search(Wish("macs", 0.37), 99, cost, "") == (63, 0.37)
    assert len(asked) < 12
    assert search(Wish("ratio", 0.9), 99, cost, "")[0] == 90


def test_not_a_number_is_refused_before_anything_is_judged():
    model = Chain()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(MismatchError, match="NaN or infinity before anything is pruned"):
        Channels(target={"ratio": 0.5}).operate(model, bench_of())


def test_a_saliency_that_is_not_finite_is_refused():
    model = Chain()

    class Broken(Magnitude):
        def total(self, contributions):
            return contributions.sum(1).index_fill(0, torch.tensor([1]), math.inf)

    surgery = Channels(target={"ratio": 0.5})
    found, _ = unit_families(model)
    with pytest.raises(DataError, match="units of 'conv1' is not finite"):
        scores(model, found, Broken(), surgery.plan.weighed, "none", bench_of())


def test_a_parametrized_model_and_one_example_alone():
    model = Chain()
    done = Channels(target={"ratio": 0.5}).operate(model, bench_of(examples=1))
    assert done.metrics["units_left"] == 8
    nn.utils.parametrizations.weight_norm(model.conv1)
    with pytest.raises(MismatchError, match="'conv1' is parametrized"):
        Channels(target={"ratio": 0.5}).operate(model, bench_of())
