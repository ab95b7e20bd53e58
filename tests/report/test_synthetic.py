"""Images that data-free schemes have left stand in the report."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import limbeck.report as report
from limbeck.core.errors import ArtifactError
from limbeck.report._sheet import sheet

Make = Callable[[dict[str, Any]], Path]
SPEC = {"preprocess": {"mean": [0.25], "std": [0.5]}, "class_names": ["zero", "<b>one"]}


def leave(out: Path, images: Any, logits: Any, spec: dict[str, Any] | None = SPEC) -> Path:
    folder = out / "stages" / "student"
    save_file({"input": images.astype(np.float16), "logits": logits.astype(np.float16)}, folder / "synthetic.safetensors")
    if spec is not None:
        (folder / "spec.json").write_text(json.dumps(spec))
    return report.write(out)


def shown(page: Path) -> Any:
    source = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page.read_text("utf-8"))
    assert len(source) == 1
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[0]))))


def test_a_row_for_each_class_and_pixels_as_they_were_before_preprocessing(content: dict[str, Any], make: Make) -> None:
    images = np.stack([np.full((1, 4, 5), value) for value in (-0.5, 1.5, 0.5)])  # 0, 1 and 0.5 of a pixel
    logits = np.eye(2)[[1, 0, 1]]
    page = leave(make(content), images, logits)
    pixels = shown(page)
    assert pixels.shape == (2 * 4 + 2, 2 * 5 + 2)
    assert (pixels[:4, :5] == 255).all() and (pixels[6:, :5] == 0).all() and (pixels[6:, 7:] == 128).all()
    text = page.read_text("utf-8")
    assert "3 images, a row for each class as the teacher sees them: zero (1), &lt;b&gt;one (2)" in text
    assert '<a href="#synthetic">' in text and 'id="synthetic"' in text


def test_without_preprocessing_the_values_span_the_greys(content: dict[str, Any], make: Make) -> None:
    images = np.stack([np.full((3, 4, 4), value) for value in (-3.0, 7.0)])
    pixels = shown(leave(make(content), images, np.eye(2)[[0, 0]], None))
    assert pixels.shape == (4, 10, 3)
    assert (pixels[:, :4] == 0).all() and (pixels[:, 6:] == 255).all()


def test_a_run_that_left_none_has_no_section(content: dict[str, Any], make: Make) -> None:
    assert "synthetic" not in report.write(make(content)).read_text("utf-8")


def test_many_classes_and_images_are_cut_and_said() -> None:
    pixels, told = sheet(np.zeros((400, 1, 2, 2), np.uint8), np.arange(400) % 12, [])
    assert pixels.shape == (10 * 4 - 2, 16 * 4 - 2, 1)
    assert "and 2 classes more" in told


@pytest.mark.parametrize("damage", ["bytes", "names", "shapes"])
def test_a_damaged_file_is_named(damage: str, content: dict[str, Any], make: Make) -> None:
    out = make(content)
    file = out / "stages" / "student" / "synthetic.safetensors"
    if damage == "bytes":
        file.write_bytes(b"not safetensors")
    elif damage == "names":
        save_file({"images": np.zeros((2, 1, 4, 4), np.float16)}, file)
    else:
        save_file({"input": np.zeros((2, 1, 4, 4), np.float16), "logits": np.zeros((3, 2), np.float16)}, file)
    with pytest.raises(ArtifactError, match=r"synthetic\.safetensors.*damaged; run the recipe again"):
        report.write(out)
