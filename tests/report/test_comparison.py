"""The page and the table of a comparison say what its file says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.errors import ArtifactError
from limbeck.report.comparison import markdown, write_comparison


def row(method: str, mean: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "weight": 2.5, "mean": mean, "low": mean - 0.01, "high": mean + 0.01, "validation": mean, "parameters": 1234} | more


GAP = {"mean": 0.0125, "low": -0.0025, "high": 0.0275, "p": 0.02, "p_holm": 0.04}
TOLD: dict[str, Any] = {
    "recipe": "a <b>", "metric": "accuracy", "seeds": 5, "factors": [0.1, 1], "epochs": 3, "steps": 1000, "examples": 1500, "limbeck": "1", "torch": "2",
    "teacher": {"accuracy": 0.91, "parameters": 99999}, "student": {"parameters": 1234}, "recipe_yaml": "name: a\n",
    "unfit": {"graph.lsp": "no <edges>"},
    "rows": [row("response.dkd", 0.9, over_kd=GAP, over_alone=GAP), row("response.kd", 0.88, over_alone=GAP), row("alone", 0.85, weight=10.0, over_kd=GAP)],
}  # fmt: skip


def test_the_markdown_has_a_line_for_each_method_and_what_was_left_out() -> None:
    lines = markdown(TOLD).splitlines()
    assert "| response.dkd | 90.00% (89.00 to 91.00) | +1.25 (-0.25 to +2.75) | 0.04 | +1.25 (-0.25 to +2.75) | 0.04 | 2.5 | 90.00% | 1,234 |" in lines
    assert "| alone | 85.00% (84.00 to 86.00) | +1.25 (-0.25 to +2.75) | 0.04 |  |  | 10 | 85.00% | 1,234 |" in lines
    assert "- `graph.lsp`: no <edges>" in lines


def test_the_page_sorts_by_numbers_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(TOLD))
    page = write_comparison(tmp_path).read_text()
    assert re.findall(r'<th scope="row" data-value="([^"]*)"', page) == ["response.dkd", "response.kd", "alone"]
    assert 'data-value="0.9"' in page
    assert "a &lt;b&gt;" in page
    assert "no <edges>" not in page
    assert (tmp_path / "leaderboard.md").read_text() == markdown(TOLD)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no comparison"):
        write_comparison(tmp_path)
