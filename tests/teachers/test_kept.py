"""Answers are kept by what was asked, whole or not at all, for one black box."""

import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.core.errors import ArtifactError, MismatchError, StorageError
from limbeck.core.files import lock
from limbeck.teachers import _kept
from limbeck.teachers._kept import Kept, keys_of

SOURCE = {"source": {"kind": "http", "url": "http://one"}, "answers": "probabilities"}


def filled(folder: Path, *values: float) -> Kept:
    kept = Kept(folder, SOURCE)
    inputs = np.array(values, np.float32)[:, None]
    kept.add(keys_of(inputs), np.stack([inputs[:, 0], -inputs[:, 0]], 1))
    kept.flush()
    return kept


def test_a_key_is_the_values_the_shape_and_the_type() -> None:
    x = np.arange(8, dtype=np.float32)
    rows, cells = keys_of(x.reshape(2, 4)), keys_of(x.reshape(2, 2, 2))
    assert rows == keys_of(x.reshape(2, 4).copy()) and len(set(rows)) == 2
    assert keys_of(x.reshape(4, 2).T.copy().T[:2]) == keys_of(x.reshape(4, 2)[:2])
    assert not {*rows} & {*cells}
    assert keys_of(x[:1].view(np.int32)) != keys_of(x[:1])


def test_what_was_answered_is_there_for_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path / "a", 1.0, 2.0)
    again = Kept(tmp_path / "a", SOURCE)
    keys = keys_of(np.array([[2.0], [3.0], [1.0], [3.0]], np.float32))
    assert len(again) == 2 and again.lacks(keys) == [1]
    np.testing.assert_array_equal(again.rows([keys[0], keys[2], keys[0]]), [[2, -2], [1, -1], [2, -2]])


def test_what_another_process_pays_for_is_found(tmp_path: Path) -> None:
    one, other = filled(tmp_path, 1.0), filled(tmp_path, 2.0)
    keys = keys_of(np.array([[1.0], [2.0]], np.float32))
    assert one.lacks(keys) == [] and other.lacks(keys) == []


def test_another_black_box_s_answers_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1.0)
    other = {**SOURCE, "source": {"kind": "http", "url": "http://two"}}
    with pytest.raises(MismatchError, match=r"another black box \(source: url: 'http://one' there, 'http://two' here\): choose another folder, or delete it"):
        Kept(tmp_path, other)
    with pytest.raises(MismatchError, match=r"\(answers: 'probabilities' there, 'labels' here\)"):
        Kept(tmp_path, {**SOURCE, "answers": "labels"})


def test_damage_is_said(tmp_path: Path) -> None:
    filled(tmp_path, 1.0)
    shard = next(tmp_path.glob("*.safetensors"))
    whole = shard.read_bytes()
    for broken in (whole[:-4], whole[:5], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        shard.write_bytes(broken)
        with pytest.raises(ArtifactError, match="is damaged: delete it, and what it held is asked again"):
            Kept(tmp_path, SOURCE)
    shard.write_bytes(whole)
    (tmp_path / "source.json").unlink()
    with pytest.raises(ArtifactError, match="nobody knows whose they are"):
        Kept(tmp_path, SOURCE)
    (tmp_path / "source.json").write_text(json.dumps([1]))
    with pytest.raises(MismatchError, match="it does not say which"):
        Kept(tmp_path, SOURCE)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        Kept(tmp_path / "file" / "inside", SOURCE)


def test_many_files_become_one_and_nobody_who_reads_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kept, "_SHARDS", 3)
    reader = filled(tmp_path, 0.0)
    for value in (1.0, 2.0, 3.0):
        filled(tmp_path, value)
    with lock(tmp_path):
        assert len(Kept(tmp_path, SOURCE)) == 4
        assert len([*tmp_path.glob("*.safetensors")]) == 4
    assert len(Kept(tmp_path, SOURCE)) == 4
    assert len([*tmp_path.glob("*.safetensors")]) == 1
    assert reader.lacks(keys_of(np.array([[0.0], [1.0], [2.0], [3.0]], np.float32))) == []


def test_answers_of_two_lengths_are_no_black_box_s() -> None:
    kept = Kept()
    kept.add([b"a"], np.zeros((1, 2)))
    kept.add([b"b"], np.zeros((1, 3)))
    with pytest.raises(MismatchError, match="holds answers of 2 and 3 classes"):
        kept.rows([b"a", b"b"])


def test_a_slow_source_s_answers_are_written_while_others_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kept, "_PAUSE", -1.0)
    kept = Kept(tmp_path, SOURCE)
    kept.add([b"0123456789abcdef"], np.zeros((1, 2), np.float32))
    assert len(Kept(tmp_path, SOURCE)) == 1
