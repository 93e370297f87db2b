"""What the training scripts print."""

from argparse import Namespace

import pytest
from helpers import arguments, run

import config
import train_snn
from tables import COLUMNS, print_measurement
from utils import read_lines

pytestmark = pytest.mark.usefixtures("undrawn")


def printed_rows(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_training_prints_a_row_for_each_epoch_and_says_where_columns_are_explained(
    tmp_path, capsys
):
    log = read_lines(run(tmp_path) / "log.jsonl")
    header, untrained, _, last, explanation, *_ = printed_rows(capsys)
    assert " ".join(header).count("acc.") == 2
    assert untrained == [
        "untrained",
        f"{log[0]['test_loss']:.4f}",
        f"{log[0]['test_accuracy']:.4f}",
    ]
    assert last[0] == "2" and last[5] == f"{log[2]['test_accuracy']:.4f}"
    assert " ".join(explanation) == COLUMNS


def test_weights_that_a_run_starts_from_are_not_called_untrained(tmp_path, capsys):
    first = run(tmp_path / "first")
    printed_rows(capsys)
    run(tmp_path, "--init", str(first / "checkpoint_latest.pt"))
    assert printed_rows(capsys)[1][0] == "0"


def test_a_measurement_prints_the_centroid_of_the_residuals_beside_ic(tmp_path, capsys):
    folder = run(tmp_path, script="train_snn_fisherinfo")
    line = read_lines(folder / "fisher.jsonl")[-1]
    _, header, untrained, last, *_ = printed_rows(capsys)
    assert header[-4:-2] == ["test", "acc."]
    assert untrained[:2] == ["untrained", "train/data"]
    residuals = line["prefix_residual"]
    expected = (residuals[0] + 2 * residuals[1]) / sum(residuals)
    assert f"{expected:.2f}" in last[4:7]


def test_a_measurement_without_information_says_so(capsys):
    line = {"epoch": 3, "split": "test", "labels": "data", "ic": None}
    print_measurement(Namespace(init=None), line, 0.5)
    assert capsys.readouterr().out.split()[:4] == ["3", "test/data", "no", "information:"]


def test_a_resumed_run_says_after_which_epoch_it_goes_on(tmp_path, capsys):
    args = config.parse("train_snn", arguments(tmp_path))
    model, *sets, _ = train_snn.setup(args)

    def stop(line):
        if line["epoch"] == 1:
            raise InterruptedError

    with train_snn.run_folder(args, sets[1]) as folder, pytest.raises(InterruptedError):
        train_snn.fit(args, folder, model, *sets, stop)
    run(tmp_path, "--resume")
    assert "\nresuming after epoch 1\n" in capsys.readouterr().out
    run(tmp_path, "--resume")  # which has nothing left to do
    assert "resuming" not in capsys.readouterr().out
