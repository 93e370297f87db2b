"""Several processes: a measurement has the same numbers, and a training goes through."""

import runpy
import time

import pytest
import torch
from helpers import ALL, ROOT, assert_close, lines, run, start

import data
import train_snn
from utils import load_run


def test_a_measurement_has_the_same_numbers_with_two_processes(undrawn, tmp_path):
    folder = run(tmp_path / "model", "--encode", "p", *ALL)
    models = [str(folder / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--checkpoints", *models, "--fisher_samples", "19", "--fisher_batch", "4",
            "--fisher_labels", "data", "model"]  # fmt: skip
    process = start(tmp_path / "2", *argv, script="train_snn_fisherinfo", flags=[], processes=2)
    alone = run(tmp_path / "1", *argv, script="train_snn_fisherinfo", flags=[])
    shown, error = process.communicate()
    assert process.returncode == 0, error
    assert shown.count("run folder") == 1
    measured = lines(tmp_path / "2" / "run", "fisher.jsonl")
    assert [line["labels"] for line in measured] == ["data", "model"] * 2
    assert "ic_change" in measured[-1]
    assert_close(measured, lines(alone, "fisher.jsonl"))


def test_a_training_goes_on_with_two_processes_until_a_signal(undrawn, tmp_path):
    """The test samples are one batch, so that one process has none."""
    folder = run(tmp_path, "--epochs", "1", "--batch_size", "128")
    process = start(tmp_path, "--resume", "--epochs", "2000", flags=[], processes=2)
    while process.poll() is None and len(lines(folder, "log.jsonl")) < 20:
        time.sleep(0.05)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert error.count("stopped by SIGTERM; --resume goes on") == 1

    log = lines(folder, "log.jsonl")
    assert [line["epoch"] for line in log] == list(range(len(log)))
    assert log[-1]["train_loss"] < log[1]["train_loss"]
    model, args = load_run(folder)
    _, test_set = data.load(args, torch.device("cpu"))
    validated = log[torch.load(folder / "checkpoint_latest.pt")["epoch"]]
    alone = train_snn.evaluate(model, test_set, args)
    assert_close(alone["prefix_loss"], validated["prefix_loss"], 1e-5)


@pytest.mark.parametrize("name", ["prune_snn", "eval_snn_robustness", "reproduce"])
def test_the_other_scripts_refuse_torchrun(name, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(f"{ROOT}/{name}.py", run_name="__main__")
    message = "this script runs in one process: start it without torchrun"
    assert capsys.readouterr().err == f"{name}.py: error: {message}\n"
