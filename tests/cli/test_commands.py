"""The commands that need no run."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from limbeck.cli.commands import app
from limbeck.core import lookup


@pytest.fixture
def said():
    """Run a command that must succeed and return its standard output."""

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, prog_name="limbeck")
        assert result.exit_code == 0, result.output
        assert not result.stderr
        return result.stdout

    return call


def test_list_names_every_part_and_recipe(said):
    text = said("list")
    for slot in lookup.SLOTS:
        assert f"\n{slot}\n" in text
        assert all(f"  {name}  " in text for name in lookup.names(slot))
    assert "  digits  " in text
    told = json.loads(said("list", "--json"))
    assert {slot: tuple(parts) for slot, parts in told["parts"].items()} == {slot: lookup.names(slot) for slot in lookup.SLOTS}
    assert told["recipes"]["digits"].startswith("The main job")


def test_show_a_part(said):
    text = said("show", "kd")
    assert text.startswith("objectives.response.kd")
    assert "arXiv:1503.02531" in text
    assert "the teacher's output main" in text
    row = next(line for line in text.splitlines() if line.startswith("temperature"))
    assert "a number" in row
    assert " 4.0 " in row
    assert "T, above zero" in row
    assert "no options" in said("show", "transfer.real")


def test_show_a_part_as_json(said):
    page = json.loads(said("show", "objectives.response.kd", "--json"))
    assert (page["slot"], page["name"]) == ("objectives", "response.kd")
    assert [option["name"] for option in page["options"]] == ["temperature"]


def test_show_a_recipe_is_its_yaml(said):
    assert yaml.safe_load(said("show", "digits"))["stages"]["student"]["kind"] == "distill"
    assert yaml.safe_load(json.loads(said("show", "digits", "--json"))["yaml"])["name"] == "digits"


def test_schema_is_json_and_knows_the_options(said):
    schema = json.loads(said("schema"))
    kd = next(case for case in schema["$defs"]["objectives"]["oneOf"] if case["title"] == "response.kd")
    assert kd["properties"]["temperature"]["default"] == 4.0


def test_check_says_what_it_checked(capfd):
    from limbeck.cli.entry import invoke

    assert invoke(["check", "digits", "--set", "stages.teacher.epochs=7"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("task") and "1293 training examples" in line for line in lines)
    assert any(line.startswith("stage teacher: ") and "for 7 epochs" in line for line in lines)
    assert invoke(["check", "digits", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["recipe"] == "digits"
    assert len(told["checked"]) == len(lines)


def test_clean_without_a_run(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said("clean") == "nothing to clean\n"
    assert json.loads(said("clean", "--json")) == {"removed": False, "bytes": 0, "leftovers": []}
