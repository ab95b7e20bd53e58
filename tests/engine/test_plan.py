"""Learning rates at the moments where they turn, and options that cannot be meant."""

import math

import pydantic
import pytest
import torch
from torch import nn

from limbeck.engine.plan import Adam, AdamW, ConstantRate, CosineRate, MultiStepRate, OneCycleRate, Sgd, Training, rate


def test_constant_rate_stays() -> None:
    assert [rate(ConstantRate(), epoch, 10) for epoch in (0, 3.7, 10)] == [1, 1, 1]


def test_warm_up_rises_from_zero_and_hands_over_without_a_step() -> None:
    for schedule in (ConstantRate(warmup_epochs=2), CosineRate(warmup_epochs=2), MultiStepRate(warmup_epochs=2, milestones=[5])):
        assert [rate(schedule, epoch, 10) for epoch in (0, 0.5, 1)] == [0, 0.25, 0.5]
        assert rate(schedule, 2, 10) == 1
        assert rate(schedule, 2 - 1e-9, 10) == pytest.approx(1, abs=1e-8)


def test_cosine_is_half_a_cosine_over_what_warm_up_leaves() -> None:
    schedule = CosineRate(warmup_epochs=2, end=0.1)
    for epoch in (2.0, 4.5, 6.0, 9.99, 10.0):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (epoch - 2) / 8)) / 2
        assert rate(schedule, epoch, 10) == pytest.approx(expected, rel=1e-12)
    assert rate(schedule, 6, 10) == pytest.approx(0.55)
    assert rate(schedule, 10, 10) == pytest.approx(0.1)
    assert rate(CosineRate(warmup_epochs=10), 10, 10) == 1  # nothing is left to fall over


def test_multistep_falls_at_its_milestones_and_not_before() -> None:
    schedule = MultiStepRate(milestones=[3, 6], factor=0.5)
    assert [rate(schedule, epoch, 10) for epoch in (0, 3 - 1e-9, 3, 6 - 1e-9, 6, 10)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_multistep_falls_on_the_first_step_of_the_epoch_for_every_number_of_steps() -> None:
    schedule = MultiStepRate(milestones=[3])
    for steps in range(1, 400):
        assert rate(schedule, (3 * steps) / steps, 10) == pytest.approx(0.1)
        assert rate(schedule, (3 * steps - 1) / steps, 10) == 1


def test_one_cycle_rises_from_a_twenty_fifth_to_its_height_and_ends_at_a_250_000th() -> None:
    schedule = OneCycleRate(rise=0.3)
    assert rate(schedule, 0, 10) == pytest.approx(1 / 25)
    assert rate(schedule, 3, 10) == pytest.approx(1)
    assert rate(schedule, 3 - 1e-9, 10) == pytest.approx(1)
    assert rate(schedule, 10, 10) == pytest.approx(1 / 250_000)
    values = [rate(schedule, epoch / 10, 10) for epoch in range(101)]
    assert values[:31] == sorted(values[:31]) and values[30:] == sorted(values[30:], reverse=True)


def test_one_cycle_agrees_with_torch() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, pct_start=0.3, cycle_momentum=False)
    for step in range(101):
        at = step / 100
        ours = rate(OneCycleRate(rise=29.3 / 100), at, 1.0)  # torch peaks at step pct_start * total - 1
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=2e-6)
        optimizer.step()
        if step < 100:
            theirs.step()


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"clip": 0}, {"keep": 0}, {"early_stopping": 0}, {"precision": "16"}, {"select": "middle"},
        {"optimizer": {"kind": "sgd", "lr": 0}}, {"optimizer": {"kind": "sgd", "lr": math.inf}}, {"optimizer": {"kind": "adam", "lr": math.nan}},
        {"optimizer": {"kind": "adam", "betas": [0.9, 1.0]}}, {"optimizer": {"kind": "adamw", "weight_decay": math.inf}},
        {"optimizer": {"kind": "sgd", "momentum": 1}}, {"schedule": {"kind": "cosine", "warmup_epochs": math.inf}},
        {"schedule": {"kind": "multistep", "milestones": [1], "factor": 0}}, {"schedule": {"kind": "onecycle", "rise": 1}}, {"epoch": 3},
        {"optimizers": {"critic": {"kind": "rmsprop"}}}, {"optimizers": {"critic": {"kind": "adam", "lr": -1}}}, {"optimizers": "adam"},
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Training.model_validate(options)


@pytest.mark.parametrize(("options", "kind"), [(Sgd(momentum=0), torch.optim.SGD), (Adam(weight_decay=0.1), torch.optim.Adam), (AdamW(), torch.optim.AdamW)])
def test_optimizers_are_torch_s_with_the_options_given(options: Sgd | Adam | AdamW, kind: type) -> None:
    made = options.build([nn.Parameter(torch.zeros(2))], fused=True)
    assert type(made) is kind
    told = options.model_dump(exclude={"kind", "nesterov"})
    assert {name: made.param_groups[0][name] for name in told} == told
