"""The wheel holds what a user needs: built here, unpacked away from the checkout, and asked from there."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed hatchling, which needs no network, and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_recipes_types_templates_and_licence_are_inside(unpacked: Path) -> None:
    recipes = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes and {path.name for path in (unpacked / "limbeck" / "recipes").iterdir()} == recipes
    assert (unpacked / "limbeck" / "py.typed").is_file()
    assert {path.name for path in (unpacked / "limbeck" / "report" / "templates").iterdir()} >= {"page.html.j2", "report.css"}
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


def test_every_module_is_inside(unpacked: Path) -> None:
    ours = {path.relative_to(ROOT / "src") for path in (ROOT / "src" / "limbeck").rglob("*.py")}
    assert {path.relative_to(unpacked) for path in (unpacked / "limbeck").rglob("*.py")} == ours


def test_a_built_in_recipe_is_checked_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    lines = [
        f"import sys; sys.path.insert(0, {str(unpacked)!r})",
        "import limbeck; print(limbeck.__file__)",
        "from limbeck.cli import main; sys.argv[1:] = ['check', 'digits']; main()",
    ]
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked))
    assert "stage student: distill" in done.stdout
