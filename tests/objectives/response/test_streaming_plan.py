"""How much is taken at a time: plans keep to their budgets, and what is computed to its plan."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Hidden
from limbeck.objectives.response._divergences import JSD, ForwardKL, SkewReverseKL
from limbeck.objectives.response._streaming import streamed
from limbeck.objectives.response._streaming_plan import Way, planned


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**5), st.integers(1, 3 * 10**5), st.none() | st.integers(1, 10**9), st.sampled_from([None, "dense", "tokens", "vocabulary"]))
def test_a_plan_keeps_to_its_budget_or_is_refused(rows: int, columns: int, budget: int | None, way: Way | None) -> None:
    try:
        plan = planned(rows, columns, budget=budget, way=way)
    except MismatchError as error:
        assert budget is not None and "allow more" in str(error)
        return
    assert way in (None, plan.way) and plan.rows >= 1 and plan.columns >= 1 and plan.tile >= 1
    assert budget is None or plan.bytes <= budget
    assert (plan.columns == max(columns, 1)) or plan.way == "vocabulary"
    assert (plan.rows == max(rows, 1)) or plan.way == "tokens"


def test_the_way_follows_size_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    ways = [planned(1024, 50257, budget=budget).way for budget in (None, 10**9, 30_000_000, 8_000_000, 2_200_000)]
    assert ways == ["tokens", "tokens", "tokens", "vocabulary", "vocabulary"]
    assert planned(64, 1000).way == "dense" and planned(8192, 1000).rows == 8192 and planned(9000, 1000).rows == 8388
    assert planned(8192, 128256, device="cuda").rows == 1024
    with pytest.raises(MismatchError, match=r"1,024 rows by 50,257 logits take [\d,]+ bytes of buffers or more, and the budget is 1,000"):
        planned(1024, 50257, budget=1000)
    with pytest.raises(MismatchError, match="all logits at once take"):
        planned(1024, 50257, budget=1000, way="dense")


@pytest.mark.parametrize("way", ["tokens", "vocabulary"])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_holds_no_more_than_the_plan_says(way: Way, bf16: bool) -> None:
    n, d, v = 64, 8, 4001
    dtype = torch.bfloat16 if bf16 else torch.float32
    for divergence, budget in itertools.product((ForwardKL(), JSD(), SkewReverseKL()), (None, 600_000)):
        draw = torch.Generator().manual_seed(0)
        h, w, theirs, head = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((n, d), (v, d), (n, d), (v, d)))
        student, teacher = Hidden(h.requires_grad_(), w.requires_grad_(), softcap=30.0), Hidden(theirs, head)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            loss = streamed(student, teacher, torch.arange(n), divergence=divergence, temperature=2.0, hard=0.5, toward=0.5, budget=budget, way=way)
        live = top = 0
        results: Any = watched.profiler
        for _, change in sorted((event.start_ns(), event.nbytes()) for event in results.kineto_results.events() if event.name() == "[memory]"):
            live += change
            top = max(top, live)
        plan = planned(n, v, budget=budget, way=way)
        small = 4 * (v * d + n * d) + 4 * 60 * n + 20_000 + (4 * 1024 * d * 2 + 4 * v if bf16 else 0)  # gradients, numbers of rows, casts
        assert plan.bytes < top + plan.bytes / 2 and top < plan.bytes + small, (divergence, plan, top)
        assert budget is None or plan.bytes <= budget
        loss.sum().backward()
