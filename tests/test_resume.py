"""A run that is killed goes on as if nothing had happened, and no run harms another."""

import json
import shutil
import signal

import pytest
import torch
from helpers import TINY, TINY_FISHER, assert_identical, everything, lines, run, start

from utils import BadInput, load_run

# Convolutions, and a random number for everything that takes one.
RANDOM = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--encode", "p",
          "--label_corrupt_prob", "0.2", "--fisher_labels", "data", "model"]  # fmt: skip


def test_a_run_that_is_killed_and_resumed_is_the_unbroken_run(undrawn, tmp_path):
    """Three kills, each before another write. Each resumption is a process with other hashes."""
    flags = [*TINY, *TINY_FISHER, *RANDOM, "--epochs", "5", "--fisher_epochs", "0", "every:1"]
    expected = run(tmp_path / "unbroken", script="train_snn_fisherinfo", flags=flags)
    for write in ("2", "15", "24"):
        killed = start(tmp_path, "--resume", script="tests/killed", flags=[write, *flags],
                       PYTHONHASHSEED=write)  # fmt: skip
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
    folder = run(tmp_path, "--resume", script="train_snn_fisherinfo", flags=flags)
    assert_identical(everything(folder), everything(expected))


def test_resume_needs_no_flags_and_records_each_start(undrawn, tmp_path):
    folder = run(tmp_path, "--tau", "3")
    before = everything(folder)
    run(tmp_path, "--resume", flags=[])
    run(tmp_path, "--resume", flags=[])
    assert_identical(everything(folder), before)
    record = json.loads((folder / "args.json").read_text())
    assert record["args"]["tau"] == 3
    assert len(record["resumed"]) == 2


def test_an_infinite_time_constant_is_resumed_and_args_json_stays_strict_json(undrawn, tmp_path):
    folder = run(tmp_path, "--tau", "inf")
    for _ in range(2):
        run(tmp_path, "--resume", flags=[])
        text = (folder / "args.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["args"]["tau"] == "inf"


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        (
            "train_snn",
            "--dataset digits",
            r"holds a run of train_snn_fisherinfo: --resume .*--exp_name",
        ),
        ("train_snn_fisherinfo", "--resume --tau 3", "has --tau 2.0, not 3.0"),
        ("train_snn_fisherinfo", "--resume --epochs 1", "has --epochs 2, not 1: it may only grow"),
        ("train_snn", "--resume", r"is of train_snn_fisherinfo\.py"),
        ("prune_snn", "--resume", r"is of train_snn_fisherinfo\.py"),
        ("eval_snn_robustness", "--resume --checkpoints RUN", r"is of train_snn_fisherinfo\.py"),
    ],
)
def test_another_start_neither_resumes_a_run_nor_changes_it(
    script, argv, message, unbroken, tmp_path
):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    argv = argv.replace("RUN", str(unbroken)).split()
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(BadInput, match=message):
        run(tmp_path, *argv, script=script, flags=[])
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_run_of_an_earlier_revision_has_no_frames(undrawn, tmp_path):
    folder = run(tmp_path)
    record = json.loads((folder / "args.json").read_text())
    checkpoint = torch.load(folder / "checkpoint_latest.pt", weights_only=True)
    for args in (record["args"], checkpoint["args"]):
        del args["frames"]
    (folder / "args.json").write_text(json.dumps(record))
    torch.save(checkpoint, folder / "checkpoint_latest.pt")
    assert load_run(folder)[1].frames is None
    with pytest.raises(BadInput, match="has --frames None, not 3"):
        run(tmp_path, "--resume", "--frames", "3", flags=[])


def test_a_finished_run_is_trained_for_longer(undrawn, tmp_path, capsys):
    folder = run(tmp_path)
    before = lines(folder, "log.jsonl")
    run(tmp_path, "--resume", "--epochs", "4", flags=[])
    assert "\nresuming after epoch 2\n" in capsys.readouterr().out
    log = lines(folder, "log.jsonl")
    assert log[:3] == before
    rates = [line["lr"] for line in log[1:]]  # cosine of 2 epochs, then of 4
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.1 * (1 - 0.5**0.5) / 2])
    assert json.loads((folder / "args.json").read_text())["args"]["epochs"] == 4
    run(tmp_path, "--resume", flags=[])  # which has nothing left to do
    assert "resuming" not in capsys.readouterr().out
    assert lines(folder, "log.jsonl") == log


@pytest.mark.parametrize("name", ["args.json", "log.jsonl", "checkpoint_latest.pt"])
def test_a_run_that_lacks_a_file_is_left_alone(name, unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / name).unlink()
    before = {
        path: path.read_bytes() for path in folder.glob("*.[jp]*") if path.name != "args.json"
    }
    with pytest.raises(BadInput, match="restore"):
        run(tmp_path, "--resume", script="train_snn_fisherinfo")
    assert {path: path.read_bytes() for path in before} == before
    assert not (folder / name).exists()


@pytest.mark.parametrize("name", ["args.json", "log.jsonl", "fisher.jsonl", "checkpoint_latest.pt"])
def test_a_damaged_file_is_named_and_left_as_it_is(name, unbroken, tmp_path):
    file = shutil.copytree(unbroken, tmp_path / "run") / name
    file.write_text("{]}\n")
    with pytest.raises(BadInput, match=f"{name} is damaged"):
        run(tmp_path, "--resume", script="train_snn_fisherinfo")
    assert file.read_text() == "{]}\n"


@pytest.mark.parametrize("script", ["train_snn_fisherinfo", "eval_snn_robustness"])
def test_a_checkpoint_that_does_not_fit_leaves_no_folder(script, unbroken, tmp_path):
    """The first one fits. Of the second, a weight is missing, or the end of the file."""
    good, bad = unbroken / "checkpoint_latest.pt", tmp_path / "bad.pt"
    flags = ["--checkpoints", str(good), str(bad)]
    state = torch.load(good, weights_only=True)
    del state["state_dict"]["fc1.weight"]
    torch.save(state, bad)
    with pytest.raises(BadInput, match=r"bad\.pt does not fit --arch fc: .*fc1\.weight"):
        run(tmp_path, *flags, script=script, flags=[])
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"bad\.pt is damaged"):
        run(tmp_path, *flags, script=script, flags=[])
    assert not (tmp_path / "run").exists()
