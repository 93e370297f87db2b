"""A run that is stopped, killed or damaged: nothing on disk is harmed, and it goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import ALL, TINY, assert_identical, everything, lines, run, start

import config
import plots
import train_snn
from utils import BadInput, Run, Stopped, StopSignals, run_script


class Interrupt:
    """Stands in for Ctrl-C at the n-th look of the script at its stop signal."""

    def __init__(self, monkeypatch, after):
        self.looks = 0

        def check(stop, together=False):
            self.looks += 1
            if self.looks == after:
                raise Stopped(signal.SIGINT)

        monkeypatch.setattr(StopSignals, "check", check)
        monkeypatch.setattr(train_snn, "CHECK_EVERY", 1)


@pytest.mark.parametrize("poisson", [False, True])
def test_stopped_at_any_moment_and_resumed_it_is_the_unbroken_run(
    poisson, unbroken, tmp_path, monkeypatch
):
    for figure in ("training", "fisher"):  # drawing them takes most of the time
        monkeypatch.setattr(plots, figure, lambda folder: None)
    argv = [*ALL, *(["--encode", "p"] if poisson else [])]
    expected = (
        unbroken
        if not poisson
        else run(tmp_path / "unbroken", *argv, script="train_snn_fisherinfo")
    )
    for after in range(1, 100):
        with monkeypatch.context() as patch:
            moment = Interrupt(patch, after)
            try:
                run(tmp_path / str(after), *argv, script="train_snn_fisherinfo")
            except Stopped:
                pass
            else:
                break
            assert moment.looks == after
        folder = run(tmp_path / str(after), "--resume", *argv, script="train_snn_fisherinfo")
        assert_identical(everything(folder), everything(expected))
    assert after > 12


class Killed(BaseException):
    """Stands in for SIGKILL: no code of the scripts catches it."""


def kill_at_write(monkeypatch, number):
    """End the run at its `number`-th write: a file written and not yet in place, or half of a line appended."""
    replace, left = os.replace, iter(range(number, -1, -1))

    def torn_replace(source, target):
        if next(left) == 0:
            Path(source).write_bytes(Path(source).read_bytes()[:100])
            raise Killed
        replace(source, target)

    def torn_append(run, name, record):
        line = json.dumps(record) + "\n"
        with open(run.path(name), "a") as file:
            killed = next(left) == 0
            file.write(line[: len(line) // 2] if killed else line)
        if killed:
            raise Killed

    monkeypatch.setattr(os, "replace", torn_replace)
    monkeypatch.setattr(Run, "append", torn_append)


def test_killed_at_any_write_and_resumed_it_is_the_unbroken_run(unbroken, tmp_path, monkeypatch):
    for figure in ("training", "fisher"):
        monkeypatch.setattr(plots, figure, lambda folder: None)
    killed = set()
    for number in range(100):
        with monkeypatch.context() as patch:
            kill_at_write(patch, number)
            try:
                run(tmp_path / str(number), *ALL, script="train_snn_fisherinfo")
            except Killed:
                killed.update(
                    path.name for path in (tmp_path / str(number) / "run").glob(".part-*")
                )
            else:
                break
        folder = run(tmp_path / str(number), "--resume", *ALL, script="train_snn_fisherinfo")
        assert_identical(everything(folder), everything(unbroken))
    assert (
        number > 10
        and {".part-checkpoint_latest.pt", ".part-checkpoint_best.pt", ".part-args.json"} <= killed
    )


def test_killed_by_the_system_while_it_trains_and_resumed_it_is_the_unbroken_run(tmp_path):
    argv = ["--epochs", "100", "--fisher_epochs", "every:20"]
    expected = run(tmp_path / "unbroken", *argv, script="train_snn_fisherinfo")
    seen = [0]
    for more in (5, 40):
        process = start(tmp_path, "--resume", *argv, script="train_snn_fisherinfo")
        while (
            process.poll() is None and len(lines(tmp_path / "run", "log.jsonl")) < seen[-1] + more
        ):
            time.sleep(0.003)
        process.kill()
        process.communicate()
        seen.append(len(lines(tmp_path / "run", "log.jsonl")))
    assert 0 < seen[1] < seen[2] < 101
    folder = run(tmp_path, "--resume", *argv, script="train_snn_fisherinfo")
    assert_identical(everything(folder), everything(expected))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_one_line(number, tmp_path):
    process = start(tmp_path, "--epochs", "2000")
    while process.poll() is None and not (tmp_path / "run" / "checkpoint_latest.pt").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "--resume" in error and error.count("\n") == 1
    at = torch.load(tmp_path / "run" / "checkpoint_latest.pt", weights_only=True)["progress"]
    assert [line["epoch"] for line in lines(tmp_path / "run", "log.jsonl")] == list(
        range(at["epoch"] + 1)
    )


def test_the_optimizers_state_goes_on_in_the_layout_of_its_parameters():
    """A checkpoint may have it in another: a fused step would then mix up its numbers."""
    steps = []
    for saved in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(
            torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        )
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
        for _ in range(2):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            state = optimizer.state_dict()
            buffer = state["state"][0]["momentum_buffer"]
            state["state"][0]["momentum_buffer"] = buffer.contiguous(memory_format=saved)
            optimizer.load_state_dict(state)
            train_snn.match_layouts(optimizer)
        steps.append(weight.detach())
    assert torch.equal(*steps)


def test_a_torn_last_line_is_dropped(unbroken, tmp_path):
    folder = run(tmp_path, *ALL, script="train_snn_fisherinfo")
    for name in ("log.jsonl", "fisher.jsonl"):
        path = folder / name
        path.write_text(path.read_text() + '{"epoch": 2, "fish')
    (folder / ".part-checkpoint_latest.pt").write_bytes(b"torn")
    run(tmp_path, "--resume", *ALL, script="train_snn_fisherinfo")
    assert_identical(everything(folder), everything(unbroken))
    assert not (folder / ".part-checkpoint_latest.pt").exists()


def test_resume_takes_the_flags_of_the_run_and_refuses_others(tmp_path, capsys):
    folder = run(tmp_path)
    before = everything(folder)
    assert_identical(everything(run(tmp_path, "--resume", flags=[])), before)
    for argv, message in (
        (["--tau", "3"], "--tau 3.0 differs from 2.0"),
        (["--epochs", "3"], "--epochs 3 differs"),
    ):
        with pytest.raises(SystemExit) as end:
            run(tmp_path, "--resume", *argv, flags=[])
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert_identical(everything(folder), before)


def test_one_script_goes_on_with_the_run_of_the_other_and_keeps_its_settings(unbroken, tmp_path):
    run(tmp_path, *ALL, "--fisher_epochs", "0", script="train_snn_fisherinfo")
    folder = run(tmp_path, "--resume", flags=[])
    record = json.loads((folder / "args.json").read_text())
    assert record["args"]["fisher_epochs"] == ["0"] and len(record["resumed"]) == 1
    assert_identical(everything(folder)["log.jsonl"], everything(unbroken)["log.jsonl"])


def test_a_folder_of_another_kind_of_run_is_refused_and_left_alone(unbroken, tmp_path, capsys):
    shutil.copytree(unbroken, tmp_path / "run")
    before = (tmp_path / "run" / "args.json").read_bytes()
    argv = ["--resume", "--checkpoints", str(unbroken / "checkpoint_latest.pt")]
    for script in ("train_snn_fisherinfo", "eval_snn_robustness"):
        with pytest.raises(SystemExit):
            run(tmp_path, *argv, script=script, flags=[])
    with pytest.raises(SystemExit):
        run(tmp_path, "--resume", script="prune_snn", flags=[])
    assert capsys.readouterr().err.count("args.json is of another kind of run") == 3
    assert (tmp_path / "run" / "args.json").read_bytes() == before


def test_an_existing_run_is_never_overwritten(tmp_path):
    before = everything(run(tmp_path))
    with pytest.raises(BadInput, match="--resume"):
        run(tmp_path)
    assert_identical(everything(tmp_path / "run"), before)


def test_a_run_whose_checkpoint_is_gone_is_left_alone(tmp_path):
    folder = run(tmp_path)
    (folder / "checkpoint_latest.pt").unlink()
    before = (folder / "log.jsonl").read_text()
    with pytest.raises(BadInput, match="checkpoint_latest"):
        run(tmp_path, "--resume")
    assert (folder / "log.jsonl").read_text() == before


def config_of(out_dir):
    return config.parse("train_snn", [*TINY, "--out_dir", str(out_dir)])


def test_a_folder_has_one_process_at_a_time(tmp_path):
    folder = run(tmp_path)
    busy = Run(folder, config_of(tmp_path), torch.device("cpu"), resume=True)
    with pytest.raises(BadInput, match="another process"):
        run(tmp_path, "--resume")
    busy.close()
    run(tmp_path, "--resume")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    torch.save({"a": 1}, tmp_path / "x.pt")
    folder = Run(tmp_path / "run", config_of(tmp_path), torch.device("cpu"))
    folder.save("x.pt", {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        folder.save("x.pt", {"a": 2, "b": lambda: None})
    assert torch.load(folder.path("x.pt"), weights_only=True) == {"a": 1}


@pytest.mark.parametrize(
    "name, content", [("args.json", "[]"), ("args.json", "{"), ("log.jsonl", "{]}\n")]
)
def test_a_damaged_record_is_one_line(name, content, tmp_path, capsys):
    (run(tmp_path) / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        run_script(lambda: run(tmp_path, "--resume"), "x.py")
    assert end.value.code == 2 and "damaged" in capsys.readouterr().err
    assert (tmp_path / "run" / name).read_text() == content


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_without_its_flags_is_refused_and_left_as_it_is(resume, tmp_path):
    (run(tmp_path) / "args.json").unlink()
    before = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(BadInput, match=r"without its args\.json"):
        run(tmp_path, *resume)
    assert (
        not (tmp_path / "run" / "args.json").exists()
        and (tmp_path / "run" / "log.jsonl").read_text() == before
    )


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--timestep", "3", "--init"], "--timestep 2, not 3"),
        (["--arch", "vgg5", "--init"], "--arch fc, not vgg5"),
        (["--width", "0.2", "--init"], "does not fit"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(argv, message, unbroken, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, *argv, str(unbroken / "checkpoint_best.pt"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_checkpoint_is_refused(content, unbroken, tmp_path):
    path = tmp_path / "x.pt"
    whole = (unbroken / "checkpoint_best.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(BadInput, match=r"x\.pt is damaged"):
        run(tmp_path, "--init", str(path))


def test_too_little_memory_is_one_line_that_states_the_cure(capsys):
    with pytest.raises(SystemExit) as end:
        run_script(lambda: torch.empty(2**55), "x.py")
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--batch_size" in error and error.count("\n") == 1


def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    with closing(Run(tmp_path / "run", Namespace(), torch.device("cpu"))) as folder:
        folder.save("x.pt", {"a": torch.ones(2)})

        def full(content, file):
            file.write(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(BadInput, match=r"x\.pt cannot be written"):
            folder.save("x.pt", {"a": torch.zeros(2)})
        assert folder.load("x.pt")["a"].tolist() == [1, 1]
