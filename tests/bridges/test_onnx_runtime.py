import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from limbeck.bridges.onnx_runtime import run, session
from limbeck.core.errors import ArtifactError, DataError, MismatchError

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2) / 7


def affine(path: Path, *, op: str = "MatMul", inputs: int = 1) -> Path:
    """An ONNX file that gives `x @ WEIGHT` for x [N, 3]."""
    takes = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["N", 3]) for i in range(inputs)]
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    node = helper.make_node(op, ["x0", "w"], ["y"])
    graph = helper.make_graph([node], "g", takes, [gives], [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path):
    return affine(tmp_path / "model.onnx")


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_it_computes_what_numpy_computes_whatever_the_batch(file, count):
    x = torch.randn(count, 3)
    expected = torch.tensor(np.stack([[sum(float(row[i]) * float(WEIGHT[i, j]) for i in range(3)) for j in range(2)] for row in x.numpy()]))
    torch.testing.assert_close(run(file, x, batch=4), expected.float())
    torch.testing.assert_close(run(session(file, threads=1), x), expected.float())


def test_inputs_that_require_grad_or_are_not_contiguous_are_read_as_they_are(file):
    x = torch.randn(3, 5, requires_grad=True).t()
    assert not x.is_contiguous()
    torch.testing.assert_close(run(file, x), (x @ torch.tensor(WEIGHT)).detach())


def test_bytes_open_like_the_file(file):
    x = torch.randn(2, 3)
    assert torch.equal(run(session(file.read_bytes()), x), run(file, x))


@pytest.mark.parametrize("shape", [(4, 5), (3,), (2, 3, 1), ()])
def test_a_wrong_shape_names_both_sides(file, shape):
    with pytest.raises(MismatchError) as caught:
        run(file, torch.zeros(shape))
    assert "[N, 3]" in str(caught.value)
    assert str(list(shape)) in str(caught.value)


def test_a_wrong_type_names_both_sides(file):
    with pytest.raises(MismatchError, match=r"tensor\(float\).*float64"):
        run(file, torch.zeros(2, 3, dtype=torch.float64))


def test_no_inputs_are_refused(file):
    with pytest.raises(DataError, match="at least one"):
        run(file, torch.zeros(0, 3))


def test_a_file_of_two_inputs_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="2 inputs"):
        run(affine(tmp_path / "two.onnx", inputs=2), torch.zeros(2, 3))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\xff" * 64, lambda data: b"text"])
def test_a_damaged_file_is_an_artifact_error_that_names_it(file, damage):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtifactError, match=r"model\.onnx") as caught:
        session(file)
    assert "\n" not in str(caught.value)


def test_an_unknown_operator_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="NoSuchThing"):
        session(affine(tmp_path / "odd.onnx", op="NoSuchThing"))


def test_a_missing_file_and_a_folder_are_artifact_errors(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ArtifactError, match="not a file"):
            run(path, torch.zeros(1, 3))


def test_counts_below_one_are_refused(file):
    with pytest.raises(MismatchError, match="threads"):
        session(file, threads=0)
    with pytest.raises(MismatchError, match="batch"):
        run(file, torch.zeros(1, 3), batch=0)


def test_a_failure_says_nothing_on_stderr_or_stdout(file, capfd):
    with pytest.raises(MismatchError):
        run(file, torch.zeros(2, 4))
    file.write_bytes(b"text")
    with pytest.raises(ArtifactError):
        session(file)
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_is_not_imported_until_it_is_used():
    code = "import sys, limbeck.bridges.onnx_runtime, limbeck.bridges.onnx; sys.exit(bool({'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_oracle_file_is_valid(file):
    onnx.checker.check_model(onnx.load(file), full_check=True)
