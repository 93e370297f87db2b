"""What the training scripts print."""

import pytest
from helpers import run

from tables import COLUMNS
from utils import read_lines

pytestmark = pytest.mark.usefixtures("undrawn")


def printed_rows(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_training_prints_a_row_for_each_epoch(tmp_path, capsys):
    folder = run(tmp_path / "first")
    log = read_lines(folder / "log.jsonl")
    _, untrained, _, last, explanation, *_ = printed_rows(capsys)
    numbers = [f"{log[0][name]:.4f}" for name in ("test_loss", "test_accuracy")]
    assert untrained == ["untrained", *numbers]
    assert last[0] == "2" and last[5] == f"{log[2]['test_accuracy']:.4f}"
    assert " ".join(explanation) == COLUMNS

    run(tmp_path, "--init", str(folder / "checkpoint_latest.pt"))
    assert printed_rows(capsys)[1][0] == "0"  # these weights are not untrained
