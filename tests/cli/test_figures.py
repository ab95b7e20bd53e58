"""Figures in one line."""

import pytest

from limbeck.cli.figures import clock, file_size, of_epoch, of_stage, percent


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12675, "12.7 kB"), (505997, "506 kB"), (999_600, "1 MB"), (2.5e9, "2.5 GB")]
)
def test_bytes_are_shown_to_three_digits(count, text):
    assert file_size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.84, "0.8 s"), (59.94, "59.9 s"), (59.96, "1:00"), (75, "1:15"), (3599.7, "1:00:00"), (3700, "1:01:40")])
def test_durations(seconds, text):
    assert clock(seconds) == text


def test_an_epoch_tells_the_loss_and_the_validation_metric():
    row = {"step": 20, "lr": 0.1, "train_loss": 0.25, "validation_accuracy": 0.9, "validation_loss": 0.3}
    assert of_epoch(row) == "loss 0.2500, validation accuracy 90.0%"
    assert of_epoch({"loss": 1.0, "validation_loss": 0.3}) == "loss 1.0000, validation loss 0.3"
    assert of_epoch({}) == ""


def test_a_stage_tells_what_is_known():
    assert of_stage({"accuracy": 0.9, "macs": 100, "parameters": 5850, "file_bytes": 12675}) == "accuracy 90.0%, 5,850 parameters, 12.7 kB"
    assert of_stage({"macs": 3}) == ""
    assert percent(0.99949) == "99.9%"
