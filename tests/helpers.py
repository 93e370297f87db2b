"""A tiny run of a script, in this process or in its own, and how two runs are compared."""

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import torch

from utils import read_lines

ROOT = Path(__file__).parent.parent
FAKE = ["--dataset", "fake", "--fake_shape", "2", "8", "8"]
TINY = [*FAKE, "--arch", "fc", "--width", "0.1", "--timestep", "2", "--epochs", "2",
        "--datanum", "80", "--batch_size", "32", "--learning_rate", "0.1"]  # fmt: skip
TINY_FISHER = ["--fisher_epochs", "0", "2", "--fisher_samples", "6"]
ALL = ["--save_epochs", "every:1"]


def arguments(out_dir, *argv, script="train_snn", flags=None):
    """The command line of a tiny run: `flags`, and those of `argv`, which count more."""
    tiny = TINY if script == "train_snn" else TINY + TINY_FISHER
    flags = tiny if flags is None else flags
    if "--dataset" in argv and flags[: len(FAKE)] == FAKE:  # another data set has its own shape
        flags = flags[len(FAKE) :]
    return [*flags, "--out_dir", str(out_dir), "--exp_name", "run", "--device", "cpu", *argv]


def run(out_dir, *argv, script="train_snn", flags=None):
    """Call the script's main() and return its run folder."""
    importlib.import_module(script).main(arguments(out_dir, *argv, script=script, flags=flags))
    return Path(out_dir) / "run"


def start(out_dir, *argv, script="train_snn", flags=None, processes=None, **environment):
    """The script in a process of its own, or in several."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *torchrun] if processes else [sys.executable]
    command += [ROOT / f"{script}.py", *arguments(out_dir, *argv, script=script, flags=flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment)


def lines(folder, name):
    """Records of a JSON-lines file, without what is measured by the clock or names a place."""
    records = read_lines(folder / name)
    for record in records:
        for field in ("seconds", "rule_seconds", "images_per_second", "checkpoint"):
            record.pop(field, None)
    return records


def everything(folder):
    """All that must be the same in two runs that computed the same."""
    files = {name: lines(folder, name) for name in ("log.jsonl", "fisher.jsonl")}
    for path in sorted(folder.glob("*.pt")):
        files[path.name] = torch.load(path, weights_only=True)
        files[path.name].pop("args", None)  # they name the place
    return files


def assert_close(a, b, tolerance=1e-6, path=""):
    """The same but for rounding."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_close(a[key], b[key], tolerance, f"{path}/{key}")
    elif isinstance(a, list | tuple):
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_close(*pair, tolerance, f"{path}/{number}")
    elif isinstance(a, float | torch.Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 1e-3, msg=path or None)
    else:
        assert a == b, path


assert_identical = partial(assert_close, tolerance=0)
