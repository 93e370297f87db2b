"""Several processes: the result is that of one, and none waits for one that is gone."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import without_norm
from helpers import assert_close, lines, run, start

import archs
import utils
from utils import Stopped, StopSignals, read_lines


@pytest.mark.parametrize("number, taken", [(0, [0]), (1, [])])
def test_a_process_without_a_gpu_of_its_own_takes_none(number, taken, monkeypatch):
    """With --device cpu there may be more processes than GPUs; where one is asked for, `pick_device` misses it."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", number), ("LOCAL_RANK", number), ("MASTER_ADDR", ""),
                        ("MASTER_PORT", "")):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    found = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(utils.dist, "init_process_group", lambda *args: None)
    monkeypatch.setattr(utils, "rank", lambda: 0)
    utils.join_processes()
    assert found == taken


@pytest.mark.parametrize("estimator", ["exact", "release"])
def test_samples_are_split_over_processes_and_the_result_is_the_same(estimator, tmp_path):
    model = run(tmp_path / "model", "--encode", "p") / "checkpoint_latest.pt"
    argv = ["--checkpoints", str(model), "--fisher_samples", "23", "--fisher_labels", "data", "model", "--fisher_batch",
            "4", "--fisher_split", "train", "test", "--fisher_estimator", estimator]  # fmt: skip
    alone = lines(
        run(tmp_path / "1", *argv, script="train_snn_fisherinfo", flags=[]), "fisher.jsonl"
    )
    assert len(alone) == 4 and alone[0]["samples"] == (23 if estimator == "exact" else 20)
    process = start(tmp_path / "3", *argv, script="train_snn_fisherinfo", flags=[], processes=3)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.count("run folder") == 1
    assert_close(lines(tmp_path / "3" / "run", "fisher.jsonl"), alone)


def test_training_is_split_over_processes_and_the_result_is_the_same(tmp_path, monkeypatch):
    """A batch of 33 is cut in unequal shares, the last one of 14 too; Poisson spikes and crops are those of one."""
    argv = ["--encode", "p", "--batch_size", "33", "--undetached_reset", "--fisher_split", "test"]
    found = {2: tmp_path / "2" / "run"}
    process = start(tmp_path / "2", *argv, script="tests/without_norm", processes=2)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.count("run folder") == 1
    monkeypatch.setattr(archs.layers.BatchNorm, "forward", without_norm.affine)
    found[1] = run(tmp_path / "1", *argv, script="train_snn_fisherinfo")
    for name in ("log.jsonl", "fisher.jsonl"):
        assert_close(lines(found[2], name), lines(found[1], name), 1e-4)
    weights = [torch.load(found[count] / "checkpoint_latest.pt")["state_dict"] for count in (1, 2)]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)


def test_a_signal_that_comes_while_processes_ask_each_other_is_heard_the_next_time(monkeypatch):
    with StopSignals() as stop:

        def gather(value):
            stop.note(signal.SIGTERM, None)
            return [value, value]

        monkeypatch.setattr(utils, "of_all", gather)
        stop.check(together=True)
        monkeypatch.setattr(utils, "of_all", lambda value: [None, value])
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check(together=True)


def test_a_process_that_dies_ends_the_others_and_resume_goes_on(tmp_path):
    argv = ["--epochs", "500", "--save_epochs", "every:500"]
    process = start(tmp_path, *argv, processes=2)
    while process.poll() is None and not (tmp_path / "run" / "checkpoint_latest.pt").exists():
        time.sleep(0.05)
    children = " ".join(
        path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")
    ).split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "lost the others" in error
    epochs = read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"]
    again = start(tmp_path, "--resume", flags=[], processes=2)
    while (
        again.poll() is None
        and read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"] <= epochs + 1
    ):
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"] > epochs + 1
