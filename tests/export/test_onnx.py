import hashlib
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from limbeck.bridges.onnx_runtime import run
from limbeck.core.errors import DataError, MismatchError, RecipeError, StorageError
from limbeck.core.knowledge import Hidden
from limbeck.core.lookup import check_options, find
from limbeck.export import parity
from limbeck.export.onnx import Onnx

PLAIN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.same = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.same(x))
        return self.head(self.drop(x.mean((2, 3))))

def net():
    torch.manual_seed(0)
    made = Net()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return made
"""
space: dict = {"__name__": "nets"}
exec(PLAIN, space)  # the other process gets the same text


def trained() -> nn.Module:
    return space["net"]()


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """A model, in training mode but for one layer, and its file."""
    model = trained().train()
    model.same[1].eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    Onnx().export(model, torch.randn(2, 1, 8, 8), path)
    return model, path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """An MLP with a name for each layer, exported from an example of one row."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5)).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    Onnx(opset=18).export(model, torch.randn(1, 1, 4, 4), path)
    return model, path


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_file_computes_what_the_model_computes_at_any_batch(convolutional, dense, count):
    torch.manual_seed(count)
    for (model, path), shape in ((convolutional, (1, 8, 8)), (dense, (1, 4, 4))):
        x = torch.randn(count, *shape)
        modes = [layer.training for layer in model.modules()]
        with torch.no_grad():
            expected = model.eval()(x)
        parity(expected, run(path, x)).check()
        for layer, mode in zip(model.modules(), modes, strict=True):
            layer.training = mode


def test_every_layer_keeps_its_own_mode(convolutional):
    model, _ = convolutional
    assert model.training
    assert model.drop.training
    assert not model.same[1].training


def test_the_file_is_valid_with_the_names_promised(convolutional, dense):
    for (_, path), opset, classes in ((convolutional, 20, 10), (dense, 18, 5)):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [i.name for i in model.graph.input] == ["input"]
        assert [o.name for o in model.graph.output] == ["logits"]
        assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", classes]
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
        assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_batch_norm_and_dropout_are_gone_and_nodes_are_named_after_layers(convolutional):
    graph = onnx.load(convolutional[1]).graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {"stem.0/Conv", "stem.2/Relu", "same.0/Conv", "head/Gemm"} <= set(names)


def test_the_file_says_nothing_of_where_it_was_made(convolutional):
    data = convolutional[1].read_bytes()
    for trace in (b"site-packages", b".py", b"File ", str(Path.cwd()).encode(), torch.__version__.encode(), b"stack_trace"):
        assert trace not in data


def test_another_process_in_another_folder_writes_the_same_bytes_and_prints_nothing(convolutional, tmp_path):
    code = PLAIN + (
        "from pathlib import Path\nfrom limbeck.export.onnx import Onnx\n"
        "Onnx().export(nn.Linear(3, 2), torch.ones(2, 3), Path('first.onnx'))\n"  # names must not depend on what was exported before
        "Onnx().export(net(), torch.zeros(5, 1, 8, 8), Path('second.onnx'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (convolutional[1], tmp_path / "second.onnx")]
    assert digests[0] == digests[1]


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[:, 0]).real


class Frozen(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Named(nn.Module):
    def forward(self, x):
        return {"logits": x.flatten(1)}


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (Branching(), r"does not export to ONNX in layer '1' \(Branching\): Could not guard on data-dependent"),
        (Eigenvalues(), r"no operator for aten\.linalg_eig"),
        (Frozen(), r"batch of 2, answers a batch of 1 with 2 rows"),
        (Named(), r"answers with dict"),
        (nn.Identity(), r"answers \[2, 1, 4, 4\] with \[2, 1, 4, 4\]"),
        (nn.Linear(5, 2), r"fails on an example \[2, 1, 4, 4\] in layer '1' \(Linear\): mat1 and mat2"),
    ],
    ids=["branch", "operator", "batch", "dict", "rank", "shape"],
)
def test_a_model_that_does_not_export_is_refused_in_one_line_and_nothing_is_written(layer, told, tmp_path):
    model = nn.Sequential(nn.Identity(), layer)
    with pytest.raises(MismatchError, match=told) as caught:
        Onnx().export(model, torch.randn(2, 1, 4, 4), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert model.training


def test_a_model_in_a_precision_that_the_runtime_has_not_is_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"does not run.*float32"):
        Onnx().export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).double(), torch.zeros(2, 1, 3, 3, dtype=torch.float64), tmp_path / "model.onnx")


def test_a_model_too_large_for_one_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("limbeck.export.onnx.LIMIT", 100)
    with pytest.raises(MismatchError, match="132 bytes of weights and one ONNX file 100"):
        Onnx().export(nn.Linear(10, 3), torch.zeros(2, 10), tmp_path / "model.onnx")


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3,), ()])
def test_an_example_without_rows_is_refused(shape, tmp_path):
    with pytest.raises(DataError, match="N of 1 or more"):
        Onnx().export(nn.Flatten(), torch.zeros(shape), tmp_path / "model.onnx")


def test_a_path_that_cannot_be_written_is_a_storage_error(monkeypatch, tmp_path):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        Onnx().export(nn.Linear(3, 2), torch.zeros(2, 3), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_it_is_found_by_name_and_its_option_is_checked():
    assert find("export", "onnx") is Onnx
    assert check_options(Onnx, {}, "export.onnx") == {"opset": 20, "outputs": "main"}
    for opset in (17, 24):
        with pytest.raises(RecipeError, match=f"18 to 23.*not {opset}"):
            Onnx(opset=opset)


class Tokens(nn.Module):
    """Token ids to a `Hidden`, of which only the tokens that count are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, input, counted=None):
        x = self.embed(input)
        return Hidden(x if counted is None else x * counted[..., None], self.embed.weight, scale=0.5, softcap=2.0)


@pytest.mark.parametrize("counts", [False, True])
def test_tokens_are_answered_in_rows_of_any_length_heads_multiplied_out(tmp_path, counts):
    torch.manual_seed(0)
    model, ids = Tokens(), torch.randint(0, 7, (3, 6))
    example = {"input": ids, "counted": (ids > 2).long()} if counts else {"input": ids}
    Onnx().export(model, example if counts else ids, tmp_path / "model.onnx")
    for length in (6, 2):
        given = {name: value[:, :length] for name, value in example.items()}
        want = model(given["input"], **({"counted": given["counted"]} if counts else {})).logits
        torch.testing.assert_close(run(tmp_path / "model.onnx", given), want, rtol=1e-5, atol=1e-6)
    dims = [dim.dim_param for dim in onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "tokens"]


def test_a_file_is_given_the_inputs_that_it_takes(tmp_path):
    ids = torch.randint(0, 7, (3, 6))
    Onnx().export(Tokens(), ids, tmp_path / "model.onnx")
    with pytest.raises(MismatchError, match=r"takes 1 inputs \(input\), and input, counted was given"):
        run(tmp_path / "model.onnx", {"input": ids, "counted": ids})
