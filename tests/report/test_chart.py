"""The geometry of the charts: scales, ticks, labels and whiskers stand where the figures say."""

import itertools
import math
import random
import re

import pytest

from limbeck.report._chart import Axis, Interval, Point, Series, bar, intervals, lines, plain, scatter
from limbeck.report._svg import Box, Scale, element, fit, log_ticks, place_labels, spread, ticks


def test_ticks_are_round_inside_and_a_handful() -> None:
    draw = random.Random(0)
    for _ in range(500):
        low = draw.uniform(-1, 1) * 10 ** draw.uniform(-6, 6)
        high = low + 10 ** draw.uniform(-6, 6)
        found = ticks(low, high)
        step = found[1] - found[0]
        assert 3 <= len(found) <= 9
        assert low - 1e-6 * step <= found[0] and found[-1] <= high + 1e-6 * step
        assert float(f"{step:.3e}".split("e")[0]) in (1.0, 2.0, 5.0) or step < 1e-9 * abs(low), "floats end there"
        assert all(math.isclose(b - a, step, rel_tol=1e-6, abs_tol=1e-12 * abs(low)) for a, b in itertools.pairwise(found))


def test_log_ticks_span_decades() -> None:
    assert log_ticks(0.09, 12_000) == [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0]


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.97, 0.97], [-3.0, 5.0], [1e-9, 1e9]])
def test_a_scale_holds_its_values_and_maps_ends_to_ends(values: list[float]) -> None:
    scale = fit(values, 10.0, 90.0)
    assert math.isclose(scale(scale.low), 10.0) and math.isclose(scale(scale.high), 90.0)
    assert all(10.0 <= scale(value) <= 90.0 for value in values)
    assert len(scale.ticks()) > 1


def test_a_logarithmic_scale_gives_equal_steps_to_equal_ratios() -> None:
    scale = Scale(1, 1000, 0, 300, log=True)
    assert [round(scale(value)) for value in (1, 10, 100, 1000)] == [0, 100, 200, 300]


def test_spread_keeps_order_and_distance() -> None:
    draw = random.Random(1)
    for _ in range(200):
        wanted = [draw.uniform(0, 100) for _ in range(6)]
        found = spread(wanted, 10, -100, 200)
        order = sorted(range(6), key=lambda at: wanted[at])
        assert all(found[b] - found[a] >= 10 - 1e-9 for a, b in itertools.pairwise(order))
    assert spread([0, 50, 100], 10, 0, 100) == [0, 50, 100], "what stands apart is not moved"


def test_labels_keep_clear_of_one_another() -> None:
    marks = [("Distilled", 200.0, 150.0), ("Exported", 203.0, 150.0), ("Alone", 200.0, 170.0), ("Teacher", 380.0, 100.0)]
    boxes = [box for box, _ in place_labels(marks, [Box(x - 7, y - 7, x + 7, y + 7) for _, x, y in marks], Box(0, 0, 400, 300))]
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= 400 for box in boxes)


def test_elements_escape_text_and_attributes() -> None:
    assert element("text", "<b>", x=1.25, class_="a b", data_name='"&') == '<text x="1.25" class="a b" data-name="&#34;&amp;">&lt;b&gt;</text>'


def test_a_scatter_puts_marks_and_whiskers_at_their_figures() -> None:
    axis = Axis("y", plain, low=0.0, high=1.0)
    svg = scatter("k", "t", "d", [Point("A", "student", 1.0, 0.5, 0.4, 0.6), Point("B", "teacher", 4.0, 0.9, 0.8, 1.0)], Axis("x", plain, zero=True), axis)
    ticks_y = {float(text): float(y) - 4 for y, text in re.findall(r'y="([\d.]+)" text-anchor="end" class="tick">([\d.]+)<', svg)}
    low, high = min(ticks_y), max(ticks_y)
    per_unit = (ticks_y[high] - ticks_y[low]) / (high - low)
    centre = float(re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg)[0])
    assert math.isclose(centre, ticks_y[low] + (0.5 - low) * per_unit, abs_tol=0.05)
    whisker = re.findall(r'<g class="whisker look-student"><line x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', svg)[0]
    assert math.isclose(float(whisker[0]) - float(whisker[1]), -0.2 * per_unit, abs_tol=0.05)


def test_models_of_one_cost_stand_side_by_side() -> None:
    marks = [Point(name, "student", 5.0, 0.5) for name in "ABC"]
    svg = scatter("k", "t", "d", [*marks, Point("D", "teacher", 50.0, 0.6)], Axis("x", plain, log=True), Axis("y", plain))
    xs = sorted(float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg))
    assert all(b - a > 10 for a, b in itertools.pairwise(xs))


def test_a_line_of_one_epoch_is_drawn() -> None:
    svg = lines("k", "t", "d", [Series("A", "student", [(1.0, 0.5)], (1.0, 0.5))], Axis("epoch", plain), Axis("accuracy", plain))
    assert "nan" not in svg and 'class="ring"' in svg


def test_an_interval_is_filled_only_where_it_leaves_out_zero() -> None:
    rows = [Interval("a", 0.02, 0.01, 0.03), Interval("b", 0.02, -0.01, 0.05), Interval("c", 0.02, None, None)]
    svg = intervals("k", "t", "d", rows, "first", "second")
    assert re.findall(r'class="(estimate[ \w]*)"', svg) == ["estimate", "estimate open", "estimate open"]
    assert svg.count('class="span"') == 2


@pytest.mark.parametrize(("value", "x", "width"), [(0.5, 60, 30), (-1.0, 0, 60)])
def test_a_bar_grows_from_the_middle(value: float, x: float, width: float) -> None:
    assert f'<rect x="{x}" y="2" width="{width}"' in bar(value, 1.0)
    assert "rect" not in bar(0.0, 1.0)
