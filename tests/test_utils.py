"""What surrounds a run: how a script ends, the run folder, checkpoints, seeds and devices."""

import resource
import signal
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import run, start

import data
import train_snn
import utils
from utils import BadInput, Run

CPU = torch.device("cpu")


def start_in(folder):
    return Namespace(resume=True, out_dir=str(folder), exp_name="run")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BadInput("no such\nfile"), "x.py: error: no such file\n"),
        (PermissionError(13, "Denied", "x.pt"), "x.py: error: [Errno 13] Denied: 'x.pt'\n"),
        (MemoryError(), "x.py: error: out of memory: try --checkpoint_activations, or a smaller"),
    ],
)
def test_bad_input_is_one_line_and_status_2(error, message, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        utils.run_script(main, "x.py")
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.startswith(message) and shown.count("\n") == 1


def test_a_signal_ends_a_script_with_one_line(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    argv = ["--epochs", "2000", "--threshold", "0.1"]
    processes = {number: start(tmp_path / number.name, *argv) for number in numbers}
    for number, process in processes.items():
        checkpoint = tmp_path / number.name / "run" / "checkpoint_latest.pt"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.05)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}; --resume" in error and error.count("\n") == 1


def test_a_folder_in_use_or_out_of_reach_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="cannot be written"):
        Run(start_in("/dev/null"), CPU)
    with Run(start_in(tmp_path), CPU):
        with pytest.raises(BadInput, match="is in use"):
            Run(start_in(tmp_path), CPU)
    with Run(start_in(tmp_path), CPU):
        pass


def test_a_script_needs_no_special_terminal(tmp_path):
    environment = {
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    process = start(tmp_path, "--help", script="eval_snn_robustness", flags=[], **environment)
    shown, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert "--timestep" in shown


def test_a_full_disk_leaves_the_file_before(tmp_path):
    """A limit on the size of files stands in for the disk."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run(start_in(tmp_path), CPU) as folder:
        folder.save("x.pt", {"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, most))
        with pytest.raises(BadInput, match=r"x\.pt cannot be written"):
            folder.save("x.pt", {"a": torch.zeros(2**20)})
        with pytest.raises(BadInput, match=r"log\.jsonl cannot be written"):
            folder.append("log.jsonl", {"text": "x" * 2**20})
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert utils.read_tensors(tmp_path / "run" / "x.pt") == {"a": 1}


def test_a_file_that_is_no_checkpoint_says_why(tmp_path):
    torch.save({"state_dict": {}, "mean": np.float64(1)}, tmp_path / "numpy.pt")
    with pytest.raises(BadInput, match=r"numpy\.pt holds numpy.*: save it again with only tensors"):
        utils.load_checkpoint(tmp_path / "numpy.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(BadInput, match=r"other\.pt is not a checkpoint: it needs"):
        utils.load_checkpoint(tmp_path / "other.pt")


def test_a_run_is_loaded_for_a_notebook(unbroken):
    model, args = utils.load_run(unbroken)
    assert not model.training
    _, test_set = data.load(args, CPU)
    accuracy = train_snn.evaluate(model, test_set, args)["prefix_accuracy"]
    assert accuracy == utils.read_lines(unbroken / "log.jsonl")[-1]["prefix_accuracy"]
    with pytest.raises(BadInput, match=r"checkpoint_latest\.pt cannot be read"):
        utils.load_run(unbroken / "figures")


@pytest.mark.parametrize("flag", ["--timestep 3", "--arch vgg5", "--width 0.2"])
def test_a_checkpoint_of_another_network_is_refused(flag, unbroken, tmp_path):
    with pytest.raises(BadInput, match=r"checkpoint_best\.pt (was trained with|does not fit) --"):
        run(tmp_path, *flag.split(), "--init", str(unbroken / "checkpoint_best.pt"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_bad_input(name):
    with pytest.raises(BadInput, match=f"--device {name} is not there"):
        utils.pick_device(name)
