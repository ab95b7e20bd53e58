"""The images that data-free schemes have left, as sheets with a row for each class."""

from dataclasses import dataclass

from limbeck.core.files import read_json

from ._run import Run

__all__ = ["Sheet", "sheets"]

FILE = "synthetic.safetensors"


@dataclass(frozen=True)
class Sheet:
    """One stage's images: a PNG as a data address, its size in pixels, what it shows in words."""

    stage: str
    label: str
    source: str
    width: int
    height: int
    told: str


def sheets(run: Run) -> list[Sheet]:
    """A sheet for every stage whose scheme has left images.

    Raises:
        ArtifactError: a file that is damaged.
    """
    found = []
    for stage in run.stages:
        folder = run.folder / "stages" / stage
        if not (folder / FILE).is_file():
            continue
        from ._sheet import as_pixels, png, read, sheet  # a report without such images loads no array

        images, logits = read(folder / FILE)
        if images.shape[1] not in (1, 3):
            continue
        spec = read_json(folder / "spec.json") if (folder / "spec.json").is_file() else {}
        pixels, told = sheet(as_pixels(images, spec.get("preprocess", {})), logits.argmax(1), spec.get("class_names") or [])
        found.append(Sheet(stage, run.label(stage), png(pixels), pixels.shape[1], pixels.shape[0], told))
    return found
