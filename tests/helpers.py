"""A tiny run of a script, in this process or in its own, what it left behind, and how that is compared."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import read_lines

ROOT = Path(__file__).parent.parent
TINY = ["--dataset", "fake", "--fake_shape", "2", "8", "8", "--arch", "fc", "--width", "0.1", "--timestep", "2",
        "--epochs", "2", "--datanum", "80", "--batch_size", "32", "--learning_rate", "0.1"]  # fmt: skip
TINY_FISHER = ["--fisher_epochs", "0", "2", "--fisher_samples", "6"]
ALL = ["--save_epochs", "every:1"]


def arguments(out_dir, *argv, script="train_snn", flags=None):
    """Flags of a tiny run; where `argv` has one of them too, it alone is given."""
    flags = (TINY + ([] if script == "train_snn" else TINY_FISHER)) if flags is None else flags
    given = {arg for arg in argv if arg.startswith("--")}
    kept, keep = [], True
    for arg in flags:
        keep = arg not in given if arg.startswith("--") else keep
        keep = keep and not (arg == "--fake_shape" and "--dataset" in given)
        kept += [arg] * keep
    return [*kept, "--out_dir", str(out_dir), "--exp_name", "run", "--device", "cpu", *argv]


def run(out_dir, *argv, script="train_snn", flags=None):
    """Call the script's main() and return its run folder."""
    importlib.import_module(script).main(arguments(out_dir, *argv, script=script, flags=flags))
    return Path(out_dir) / "run"


def start(out_dir, *argv, script="train_snn", flags=None, processes=None):
    """The script in a process of its own, or in several."""
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes
        else []
    )
    command = [
        sys.executable,
        *torchrun,
        ROOT / f"{script}.py",
        *arguments(out_dir, *argv, script=script, flags=flags),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def lines(folder, name):
    """Records of a JSON-lines file, without what is measured by the clock or names a place."""
    clock = ("seconds", "images_per_second", "checkpoint")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_lines(folder / name)]


def everything(folder):
    """All that must be the same in two runs that computed the same."""
    found = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    for content in found.values():
        for place in ("out_dir", "resume", "dry_run"):
            content.get("args", {}).pop(place, None)
    return found | {name: lines(folder, name) for name in ("log.jsonl", "fisher.jsonl")}


def assert_identical(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (one, other) in enumerate(zip(a, b)):
            assert_identical(one, other, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def flat(value):
    """All numbers in lines of a record, and the rest as it is."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (key, *flat(value[key]))]
    return [part for one in value for part in flat(one)] if isinstance(value, list) else [value]


def assert_close(found, expected, tolerance=1e-6):
    """The same lines but for rounding."""
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one == (
            pytest.approx(other, rel=tolerance, abs=tolerance * 1e-3)
            if isinstance(other, float)
            else other
        )
