"""bench.py: a tiny run of each of its tables."""

import os
import shutil

import pytest
import torch
from helpers import ROOT

import archs
import bench
from utils import BadInput

TINY = ["--timestep", "2", "--samples", "2", "--repeats", "1", "--device", "cpu"]
NETWORK = ["--arch", "vgg5", "--width", "0.1"]
NEEDS_COMPILER = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler"
)


@pytest.mark.parametrize(
    ("command", "ways"),
    [
        (["fisher", *NETWORK], ("P", "estimator", "released")),
        pytest.param(
            ["train", *NETWORK], ("float32", "bf16", "step by step"), marks=NEEDS_COMPILER
        ),
        (["neuron"], ("one call", "compiled", "loop")),
    ],
)
def test_a_table_has_a_row_for_each_way(command, ways, capsys):
    with torch.compiler.set_stance("force_eager"):  # to compile takes longer than the table
        bench.main([*command, *TINY])
    table = capsys.readouterr().out
    assert all(f"\n{way} " in table for way in ways)


def test_the_network_step_by_step_computes_the_same(float64):
    single, model = (archs.build("vgg5", timestep=t, num_classes=10, width=0.2) for t in (1, 3))
    single.load_state_dict(model.state_dict())
    x = 3 * torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(bench.StepByStep(single, 3)(x), model(x))


def test_a_network_of_a_file_is_measured_in_chosen_ways(capsys):
    network = ["--arch", f"{ROOT}/tests/own.py:build", "--image_size", "8"]
    bench.main(["fisher", *network, *TINY, "--ways", "estimator"])
    table = capsys.readouterr().out
    assert "\nP " in table and "\nestimator " in table and "released" not in table
    with pytest.raises(BadInput, match="unknown --ways nothing: choose from P, estimator"):
        bench.main(["fisher", *network, *TINY, "--ways", "nothing"])
