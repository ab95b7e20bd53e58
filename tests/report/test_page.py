"""The page: well formed, self-contained, escaped, accessible, and holding the facts."""

import doctest
import importlib
import itertools
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import limbeck.report as report

Make = Callable[[dict[str, Any]], Path]
VOID = {"meta", "link", "br", "hr", "img", "input"}
PLAIN = str.maketrans("\u2212\u2013\u00d7", "--x")
MALICE = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Checks that every element is closed in order, and keeps what is told of each."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None], str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), self.open[-1] if self.open else ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parsed(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def words(reader: Reader) -> str:
    return re.sub(r"\s+", " ", "".join(reader.text)).translate(PLAIN)


@pytest.mark.parametrize("missing", [(), ("fidelity.json",), ("measurement.json",), ("fidelity.json", "measurement.json"), ("stages/student/history.json",)])
def test_the_page_is_well_formed_whatever_is_missing(missing: tuple[str, ...], content: dict[str, Any], make: Make) -> None:
    for name in missing:
        del content[name]
    reader = parsed(report.write(make(content)))
    ids = Counter(attributes["id"] for _, attributes, _ in reader.tags if "id" in attributes)
    assert max(ids.values()) == 1
    for tag, attributes, _ in reader.tags:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids, f"<{tag}> is named by {name}, which is not there"
        if tag == "a":
            assert (attributes["href"] or "").startswith("#") and (attributes["href"] or "")[1:] in ids
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("role") == "img"
    levels = [int(tag[1]) for tag, _, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    count = Counter(tag for tag, _, _ in reader.tags)
    assert count["table"] == count["caption"]
    assert count["script"] == 0
    titled = sum(tag == "title" and parent == "svg" for tag, _, parent in reader.tags)
    assert titled == count["desc"] == sum(attributes.get("role") == "img" for tag, attributes, _ in reader.tags if tag == "svg")


def test_a_bare_run_file_is_enough(content: dict[str, Any], make: Make) -> None:
    page = words(parsed(report.write(make({"run.json": {"recipe": "bare", "stages": {}}}))))
    assert "There is no student in this run." in page
    assert "Speed was not measured." in page
    page = words(
        parsed(report.write(make({"run.json": {"recipe": "bare", "stages": {"s": {"kind": "distill"}}, "roles": {"student": "s", "teacher": "gone"}}})))
    )
    assert "The student was not tested." in page and "There is no teacher in this run" in page


def test_nothing_outside_is_referred_to(content: dict[str, Any], make: Make) -> None:
    text = report.write(make(content)).read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<img|<iframe|\son\w+=", text)
    assert re.findall(r'(?:src|href)="([^#][^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text


def test_whatever_comes_from_the_run_is_escaped(content: dict[str, Any], make: Make) -> None:
    run = content["run.json"]
    content["fidelity.json"]["class_names"][3] = MALICE
    content["fidelity.json"]["split"] = MALICE
    content["measurement.json"]["machine"][MALICE] = MALICE
    content["measurement.json"]["energy"]["reason"] = MALICE
    content["measurement.json"]["notes"] = [MALICE]
    content["stages/teacher/lineage.json"][MALICE] = MALICE
    content["measurement.json"]["ratios"][0]["quantity"] += MALICE
    run["stages"]["evil-" + MALICE.replace("/", "")] = {"kind": MALICE, "artifact": MALICE, "metrics": run["stages"]["alone"]["metrics"]}
    run["notes"] += [{"text": MALICE, "stage": MALICE, "loud": True}, {"text": MALICE + "2"}]
    run |= {"recipe": MALICE, "recipe_yaml": "task: {kind: image}\n#" + MALICE, "command": MALICE, "created": MALICE, "environment": {MALICE: MALICE}}
    path = report.write(make(content))
    reader = parsed(path)
    assert not {"script", "iframe"} & {tag for tag, _, _ in reader.tags}
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;", "", path.read_text("utf-8"))
    assert words(reader).count(MALICE) > 12


def test_the_facts_stand_in_the_tables(content: dict[str, Any], make: Make) -> None:
    page = words(parsed(report.write(make(content))))
    for fact in (
        "1,184,010", "96,234", "12.3x fewer", "38.5 M", "43.3x smaller", "0.492", "118 MB", "batch 32", "14,200", "4.2-4.4", "9of 360", "97.8%", "2.7%",
        "on 1 thread from 400 calls each", "Energy was not measured: no RAPL or NVML counter can be read here.",
        "98.6% at epoch 27", "98.3% at epoch 30", "reused", "2.1e-6", "99.7%", "28.7", "limbeck run digits --out runs/digits", "temperature: 4.0",
        "Intel(R) Xeon(R) Platinum 8481C", "avx512_vnni", "2.13.0", "9c0e" * 16, "0f3a" * 16, "2026-11-21 10:02 UTC",
        "3 of 10 classes lost, 1 gained, 6 stayed.", "ECE 1.9%", "144 of 1,437 training images",
    ):  # fmt: skip
        assert fact in page, fact


def test_classes_are_sorted_by_their_change_and_many_are_folded(content: dict[str, Any], make: Make) -> None:
    page = words(parsed(report.write(make(content))))
    assert re.search(r"Points ?Bar ?8 ?30/3329/33-3\.0 ?3 ?36/3735/37-2\.7", page)
    names = [f"class of {at}" for at in range(100)]
    for model in content["fidelity.json"]["models"].values():
        model["per_class"] = [{"correct": 50, "total": 100} for _ in names]
    for at, right in ((7, 20), (30, 80)):
        content["fidelity.json"]["models"]["student"]["per_class"][at]["correct"] = right
    content["fidelity.json"]["class_names"] = names
    text = report.write(make(content)).read_text("utf-8")
    shown = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert re.findall(r">class of (\d+)<", shown) == ["7", "30"] * 2
    assert "The other 98 classes" in text and set(re.findall(r">(class of \d+)<", text)) == set(names)


@pytest.mark.parametrize(
    ("busy", "notes", "shown"), [(True, [], "The machine was busy"), (True, ["busy: load 3 on 2 cores"], "busy: load 3"), (False, ["warm-up took 9 s"], "")]
)
def test_a_busy_machine_is_told_loudly(busy: bool, notes: list[str], shown: str, content: dict[str, Any], make: Make) -> None:
    content["measurement.json"] |= {"busy": busy, "notes": notes}
    text = report.write(make(content)).read_text("utf-8")
    loud = re.findall(r'<aside class="loud".*?</aside>', text, flags=re.DOTALL)
    assert len(loud) == (1 if shown else 0)
    assert shown in "".join(loud)
    assert all(text.count(note) == 1 for note in notes)


def test_a_latency_that_did_not_settle_is_told(content: dict[str, Any], make: Make) -> None:
    content["measurement.json"]["models"]["int8"]["steady"] = False
    assert "The latency of INT8 did not become steady" in report.write(make(content)).read_text("utf-8")


def _luminance(colour: str) -> float:
    colour = "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast(theme: int) -> None:
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text("utf-8")
    colours = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{3,6})\b", re.findall(r":root\s*\{(.*?)\}", css, flags=re.DOTALL)[theme]))
    marks = {"teacher", "alone", "student", "shipped", "int8", "other", "gain", "loss"}
    pairs = [(text, ground, 4.5) for text in ("ink", "muted", "link") for ground in ("page", "card", "sunk")] + [("warn-ink", "warn-page", 4.5)]
    pairs += [(mark, "page", 3.0) for mark in marks]
    for front, ground, least in pairs:
        low, high = sorted((_luminance(colours[front]), _luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= least, (front, ground)


@pytest.mark.parametrize("name", ["_format", "_svg", "_tables"])
def test_the_examples_in_the_docstrings(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"limbeck.report.{name}"))
    assert outcome.attempted and not outcome.failed
