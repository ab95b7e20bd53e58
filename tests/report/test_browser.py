"""The page in a browser: no console error, not blank, light and dark, no sideways scroll on a phone."""

import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limbeck import report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
Make = Callable[[dict[str, Any]], Path]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [
                str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
                f"--user-data-dir={profile}", *options, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip


def console(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_is_read(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<script>console.error("control")</script><meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><img src="x.png">')
    assert len(console(browse(page, "--dump-dom"))) >= 2, "the check below would see nothing"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_it_renders_without_a_console_message(width: int, scheme: str, content: dict[str, Any], make: Make, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    run = browse(
        report.write(make(content)),
        f"--window-size={width},1600",
        f"--blink-settings=preferredColorScheme={'01'[scheme == 'light']}",
        f"--screenshot={picture}",
    )
    assert console(run) == []
    grey = Image.open(picture).convert("L")
    histogram = grey.histogram()
    total = sum(histogram)
    ground = max(range(256), key=lambda level: histogram[level])
    assert ground > 240 if scheme == "light" else ground < 40
    inked = sum(count for level, count in enumerate(histogram) if abs(level - ground) > 60)
    assert 0.01 < inked / total < 0.5


def test_only_tables_scroll_sideways(content: dict[str, Any], make: Make, tmp_path: Path) -> None:
    content["fidelity.json"]["class_names"] = [f"class{'x' * 90} {at}" for at in range(10)]
    run = content["run.json"]
    run["recipe"] = "r" * 120
    run["notes"].append({"text": "n" * 200, "loud": True})
    run["command"] = "limbeck run " + "c" * 300
    run["stages"]["s" * 80] = {"kind": "distill", "metrics": run["stages"]["alone"]["metrics"]}
    inner = html.escape(report.write(make(content)).read_text("utf-8").replace("<details>", "<details open>"))
    script = """
onload = () => {
  document.title = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const past = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > root.clientWidth + 1);
    return ["width", root.clientWidth, root.scrollWidth, past.length, past.slice(0, 3).map(e => e.outerHTML.slice(0, 80)).join(" ")].join("|");
  }).join("\\n");
};
"""
    widths = [320, 360, 768]
    frames = "".join(f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>' for width in widths)
    page = tmp_path / "phone.html"
    page.write_text(f"<!doctype html><title>none</title>{frames}<script>{script}</script>")
    told = re.search(r"<title>(width.*?)</title>", browse(page, "--dump-dom").stdout, flags=re.DOTALL)
    assert told, "the page inside the frames did not load"
    found = re.findall(r"width\|(\d+)\|(\d+)\|(\d+)\|", told[1])
    assert [int(width) for width, _, _ in found] == widths
    assert [int(needed) for _, needed, _ in found] == widths, told[1]
    assert [int(past) for _, _, past in found] == [0] * len(widths), told[1]
