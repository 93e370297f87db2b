"""bench.py: a tiny run of each of its tables."""

import os
import shutil

import pytest
import torch

import bench

TINY = ["--width", "0.1", "--timestep", "2", "--samples", "3", "--repeats", "1", "--device", "cpu"]


def printed(capsys, *argv):
    """What bench.py prints. Nothing is compiled: that takes longer than the tables."""
    with torch.compiler.set_stance("force_eager"):
        bench.main([*argv, *TINY])
    return capsys.readouterr().out


def test_the_information_is_compared_with_ordinary_passes_and_the_released_way(capsys):
    table = printed(capsys, "fisher", "--arch", "fc")
    for way in ("P", "estimator", "released"):
        assert f"\n{way} " in table


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_a_training_step_is_compared_with_the_network_step_by_step(capsys):
    table = printed(capsys, "train", "--arch", "resnet20")
    for way in ("float32", "bf16", "step by step"):
        assert f"\n{way} " in table


def test_a_layer_of_neurons_is_compared_with_its_loop_over_timesteps(capsys):
    table = printed(capsys, "neuron")
    for way in ("one call", "compiled", "loop"):
        assert f"\n{way} " in table
