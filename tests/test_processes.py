"""Several processes: a measurement has the same numbers, and a training goes through."""

import time

from helpers import assert_close, lines, run, start


def test_a_measurement_has_the_same_numbers_with_three_processes(undrawn, tmp_path):
    model = run(tmp_path / "model", "--encode", "p") / "checkpoint_latest.pt"
    argv = ["--checkpoints", str(model), "--fisher_samples", "23", "--fisher_batch", "4",
            "--fisher_labels", "data", "model"]  # fmt: skip
    alone = run(tmp_path / "1", *argv, script="train_snn_fisherinfo", flags=[])
    process = start(tmp_path / "3", *argv, script="train_snn_fisherinfo", flags=[], processes=3)
    shown, error = process.communicate()
    assert process.returncode == 0, error
    assert shown.count("run folder") == 1
    measured = lines(tmp_path / "3" / "run", "fisher.jsonl")
    assert [line["labels"] for line in measured] == ["data", "model"]
    assert_close(measured, lines(alone, "fisher.jsonl"))


def test_a_training_of_two_processes_is_stopped_and_goes_on(undrawn, tmp_path):
    """One of them has no batch to validate."""
    few = ["--test_samples", "20"]
    alone = lines(run(tmp_path / "alone", "--epochs", "1", *few), "log.jsonl")
    first = start(tmp_path, "--epochs", "40", *few, processes=2)
    while first.poll() is None and not (tmp_path / "run" / "checkpoint_latest.pt").exists():
        time.sleep(0.05)
    first.terminate()
    error = first.communicate(timeout=60)[1]
    assert error.count("stopped by SIGTERM; --resume goes on") == 1
    assert len(lines(tmp_path / "run", "log.jsonl")) < 41

    again = start(tmp_path, "--resume", flags=[], processes=2)
    error = again.communicate(timeout=60)[1]
    assert again.returncode == 0, error
    log = lines(tmp_path / "run", "log.jsonl")
    assert [line["epoch"] for line in log] == list(range(41))
    assert log[-1]["train_loss"] < log[1]["train_loss"]
    assert_close(log[0], alone[0], 1e-5)  # validated by both, before any training


def test_the_other_scripts_refuse_torchrun(tmp_path):
    scripts = ("prune_snn", "eval_snn_robustness", "reproduce")
    started = {name: start(tmp_path, script=name, flags=[], WORLD_SIZE="2") for name in scripts}
    message = "this script runs in one process: start it without torchrun"
    for name, process in started.items():
        assert process.communicate()[1] == f"{name}.py: error: {message}\n"
        assert process.returncode == 2
