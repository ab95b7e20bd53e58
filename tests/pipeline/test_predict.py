"""Classes and probabilities from an artifact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.core import lookup
from limbeck.core.artifact import seal
from limbeck.core.errors import ArtifactError, DataError, MismatchError
from limbeck.pipeline import predict as module
from limbeck.pipeline.predict import predict

PREPROCESS = {"kind": "image", "mode": "L", "size": [4, 4], "scale": 16.0, "mean": [0.25], "std": [0.5]}
SEED = 3  # of weights that do not give all images one class
NAMES = ["cat", "dog", "hen"]


def artifact(folder: Path, *, names: list[str] = NAMES, preprocess: dict | None = None, poison: bool = False) -> tuple[Path, torch.nn.Module]:
    """An MLP for 4x4 grey images and three classes, and the folder that holds it."""
    torch.manual_seed(SEED)
    options = {"widths": [8]}
    model = lookup.build("models", "mlp", options, in_shape=(1, 4, 4), classes=3).eval()
    weights = {name: value.contiguous() * (float("nan") if poison else 3.0) for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    spec = {
        "builder": "mlp", "options": options, "in_shape": [1, 4, 4], "classes": 3, "class_names": names,
        "preprocess": PREPROCESS if preprocess is None else preprocess,
    }  # fmt: skip
    seal(folder, name="student", kind="module", model="model.safetensors", stage_hash="0" * 64, spec=spec, metrics={})
    return folder, model


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (7, 4, 4)).astype(np.uint8)


def test_probabilities_are_the_softmax_of_what_the_model_says_of_prepared_images(tmp_path, images, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)  # 3 + 3 + 1
    folder, model = artifact(tmp_path / "a")
    np.save(tmp_path / "x.npy", images)
    found = predict(folder, [tmp_path / "x.npy"])
    with torch.no_grad():
        logits = model(torch.tensor((images / 16.0 - 0.25) / 0.5, dtype=torch.float32)[:, None]).double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [one.index for one in found] == list(range(7))
    assert [one.label for one in found] == [NAMES[row.argmax()] for row in shares]
    assert len({one.label for one in found}) > 1
    np.testing.assert_allclose([[one.probabilities[name] for name in NAMES] for one in found], shares, rtol=1e-5)


def test_files_of_each_kind_in_the_order_given(tmp_path, images):
    folder, _ = artifact(tmp_path / "a")
    np.save(tmp_path / "x.npy", images[:2])
    np.savez(tmp_path / "y.npz", x=images[2:3])
    Image.fromarray((images[0] * 255.0 / 16).round().astype(np.uint8)).save(tmp_path / "z.png")
    paths = [tmp_path / "z.png", tmp_path / "x.npy", tmp_path / "y.npz", tmp_path / "x.npy"]
    found = predict(folder, paths)
    assert [(one.input.name, one.index) for one in found] == [("z.png", None), ("x.npy", 0), ("x.npy", 1), ("y.npz", 0), ("x.npy", 0), ("x.npy", 1)]
    assert found[1] == found[4]
    assert found[0].probabilities == pytest.approx(found[1].probabilities, abs=0.03)  # 8 bits of 255 for values of 16


def test_as_dict_is_what_json_prints(tmp_path, images):
    folder, _ = artifact(tmp_path / "a")
    np.save(tmp_path / "x.npy", images[:1])
    told = predict(str(folder), [str(tmp_path / "x.npy")])[0].as_dict()
    assert set(told) == {"input", "index", "class", "probability", "probabilities"}
    assert told["probability"] == told["probabilities"][told["class"]] == max(told["probabilities"].values())


def test_classes_of_one_name_stay_apart(tmp_path, images):
    folder, _ = artifact(tmp_path / "a", names=["cat", "dog", "cat"])
    np.save(tmp_path / "x.npy", images)
    assert list(predict(folder, [tmp_path / "x.npy"])[0].probabilities) == ["cat (0)", "dog", "cat (2)"]


def test_bad_inputs(tmp_path, images):
    folder, _ = artifact(tmp_path / "a")
    np.save(tmp_path / "wrong.npy", images[:, :3])
    np.save(tmp_path / "nan.npy", np.full((1, 4, 4), np.nan, np.float32))
    np.save(tmp_path / "empty.npy", images[:0])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, error, said in [
        ("wrong.npy", MismatchError, "trained on 4x4"), ("nan.npy", DataError, "not finite"), ("empty.npy", DataError, "no image"),
        ("objects.npy", DataError, "Python objects"),
        ("cut.png", DataError, "cannot read the image"), ("gone.png", DataError, "missing"), ("a", DataError, "neither"),
    ]:  # fmt: skip
        with pytest.raises(error, match=said):
            predict(folder, [tmp_path / name])
    with pytest.raises(DataError, match="nothing to predict"):
        predict(folder, [])


def test_artifacts_that_cannot_answer(tmp_path, images):
    np.save(tmp_path / "x.npy", images)
    inputs = [tmp_path / "x.npy"]
    with pytest.raises(MismatchError, match="takes no images"):
        predict(artifact(tmp_path / "a", preprocess={})[0], inputs)
    with pytest.raises(MismatchError, match="gives 3 logits, and its artifact names 2 classes"):
        predict(artifact(tmp_path / "b", names=["cat", "dog"])[0], inputs)
    with pytest.raises(ArtifactError, match="not finite"):
        predict(artifact(tmp_path / "c", poison=True)[0], inputs)
    damaged, _ = artifact(tmp_path / "d")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        predict(damaged, inputs)
    with pytest.raises(ArtifactError, match="is missing"):
        predict(tmp_path / "nowhere", inputs)
