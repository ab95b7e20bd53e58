"""The stages compress and choose: what they write, what a clean process makes of it, what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.compress.prune.weights import Weights
from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.pipeline.check import check
from limbeck.pipeline.modules import load_module, read_tensors

STAGES: dict[str, Any] = {
    "teacher": {"kind": "train", "model": {"kind": "cnn", "width": 8}, "epochs": 2},
    "pruned": {"kind": "compress", "of": "teacher", "method": {"kind": "prune.channels", "target": {"macs": 0.5}}},
    "student": {"kind": "distill", "init": "pruned", "teacher": {"kind": "frozen", "of": "teacher"}, "epochs": 1},
    "sparse": {"kind": "compress", "of": "student", "method": {"kind": "prune.weights", "target": {"ratio": 0.7}}},
    "repaired": {"kind": "distill", "init": "sparse", "teacher": {"kind": "frozen", "of": "teacher"}, "epochs": 1},
    "shared": {"kind": "compress", "of": "repaired", "method": {"kind": "share.kmeans", "bits": 4}},
    "coded": {"kind": "compress", "of": "shared", "method": "share.lbk"},
    "chosen": {"kind": "choose", "of": ["student", "repaired", "coded"], "than": "teacher", "within": 1.0, "by": "weights_left"},
    "shipped": {"kind": "export", "of": "coded"},
}


def recipe(stages: dict[str, Any]) -> dict[str, Any]:
    return {"name": "small", "task": {"kind": "image", "data": "digits"}, "stages": stages, "measure": {"latency": False}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    limbeck.run(recipe(STAGES), out=out)
    return out


def stage(run: Path, name: str) -> Artifact:
    return Artifact.open(run / "stages" / name)


def test_a_clean_process_makes_every_model_again_from_record_and_weights(run: Path) -> None:
    code = (
        "import sys, torch, limbeck; from safetensors.torch import load_file\n"
        "for path in sys.argv[1:]:\n"
        "    golden = load_file(f'{path}/golden.safetensors'); model = limbeck.load(path)\n"
        "    with torch.no_grad(): assert torch.equal(model(golden['inputs']), golden['outputs']), path\n"
        "assert 'torch_pruning' not in sys.modules\n"
    )
    paths = [str(run / "stages" / name) for name in STAGES if name != "shipped"]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_zeros_stay_zero_while_the_student_is_repaired(run: Path) -> None:
    before, after = (read_tensors(stage(run, name).model_file) for name in ("sparse", "repaired"))
    matrices = [name for name, value in before.items() if value.ndim > 1]
    assert matrices
    assert all(((before[name] == 0) <= (after[name] == 0)).all() for name in matrices)
    assert any((before[name] != after[name]).any() for name in matrices)
    assert stage(run, "repaired").metrics["weights_left"] < 0.5 * stage(run, "repaired").metrics["parameters"]


def test_what_training_needed_is_gone_from_what_is_packed(run: Path) -> None:
    told = stage(run, "coded").spec
    assert [change["surgery"] for change in told["changes"]] == ["prune.channels", "prune.weights"]
    assert told["packed"] == "share.lbk"
    shared, coded = (load_module(stage(run, name)) for name in ("shared", "coded"))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(shared(x), coded(x))
    assert stage(run, "coded").metrics["file_bytes"] == (run / "stages/coded/model.lbk").stat().st_size
    assert stage(run, "coded").metrics["parameters"] == stage(run, "shared").metrics["parameters"] == stage(run, "student").metrics["parameters"]


def test_the_smallest_that_is_good_enough_is_taken(run: Path) -> None:
    choice = json.loads((run / "stages/chosen/choice.json").read_text())
    least = min(choice["candidates"], key=lambda one: (one["weights_left"], -one["validation_accuracy"]))
    assert choice["taken"] == least["name"]
    assert stage(run, "chosen").manifest["name"] == "chosen"


def test_the_report_shows_what_was_made_smaller(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "What was made smaller" in page
    assert "prune.channels" in page and "is the smallest by weights left" in page


def test_a_second_run_reuses_everything(run: Path) -> None:
    done = limbeck.run(recipe(STAGES), out=run)
    assert all(told["reused"] for told in done.stages.values())


def test_a_flipped_byte_of_a_packed_file_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "stages/coded", tmp_path / "coded")
    file = tmp_path / "coded/model.lbk"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"model\.lbk does not match its manifest"):
        limbeck.load(tmp_path / "coded")


REFUSED = [
    ({"kind": "compress", "of": "teacher", "method": "static_int8"}, RecipeError, r"static_int8 .* is for exported files: \{kind: quantize"),
    ({"kind": "compress", "of": "teacher", "method": "prune.saliency.obd"}, RecipeError, "a choice within a surgery, such as prune.weights"),
    ({"kind": "compress", "of": "teacher", "method": {"kind": "prune.channels", "target": {"mac": 0.5}}}, RecipeError, "target"),
    ({"kind": "choose", "of": ["teacher"], "by": "latency"}, RecipeError, r"stages\.more\.by"),
    ({"kind": "choose", "of": ["tacher"]}, RecipeError, "did you mean 'teacher'"),
    ({"kind": "quantize", "of": "teacher"}, RecipeError, r"takes a graph, and 'teacher' gives a module"),
]


@pytest.mark.parametrize(("told", "error", "message"), REFUSED)
def test_a_mistake_is_found_before_anything_runs(told: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(recipe({"teacher": STAGES["teacher"], "more": told}))


def test_the_best_epoch_is_not_chosen_while_a_model_is_still_being_pruned() -> None:
    prepared = {"kind": "compress", "of": "teacher", "method": {"kind": "prune.gradual", "target": {"ratio": 0.9}}}
    stages = {"teacher": STAGES["teacher"], "prepared": prepared, "sparse": {"kind": "train", "init": "prepared", "epochs": 4}}
    with pytest.raises(MismatchError, match=r"until epoch 4 of 4 \(prune\.gradual\).*select: last"):
        check(recipe(stages))
    stages["sparse"]["select"] = "last"
    check(recipe(stages))


def test_none_is_good_enough(tmp_path: Path) -> None:
    stages = {
        "teacher": {**STAGES["teacher"], "epochs": 4},
        "bare": {"kind": "compress", "of": "teacher", "method": {"kind": "prune.weights", "target": {"ratio": 0.99}}},
        "chosen": {"kind": "choose", "of": ["bare"], "than": "teacher", "within": 0.0},
    }
    with pytest.raises(MismatchError, match=r"none of bare has a validation_accuracy within 0 of teacher's"):
        limbeck.run(recipe(stages), out=tmp_path)


def test_shrink_gives_a_model_of_its_own() -> None:
    task = build("tasks", "image", {"data": "digits"})
    model = build("models", "mlp", {"widths": [16]}, in_shape=(1, 8, 8), classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = limbeck.shrink(model, task, Weights(target={"ratio": 0.5}))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert done.metrics["weights_left"] < sum(value.numel() for value in before.values())
    with pytest.raises(RecipeError, match="shrink takes a surgery"):
        limbeck.shrink(model, task, "prune.weights")  # pyright: ignore[reportArgumentType]
