"""bench.py: a tiny run of each of its tables."""

import os
import shutil

import pytest
import torch

import archs
import bench
from utils import BadInput

TINY = ["--timestep", "2", "--samples", "2", "--repeats", "1", "--device", "cpu"]


def printed(capsys, *argv):
    """What bench.py prints. Nothing is compiled: that takes longer than the tables."""
    with torch.compiler.set_stance("force_eager"):
        bench.main([*argv, *TINY])
    return capsys.readouterr().out


def test_the_information_is_compared_with_ordinary_passes_and_the_released_way(capsys):
    table = printed(capsys, "fisher", "--arch", "fc", "--width", "0.1")
    for way in ("P", "estimator", "released"):
        assert f"\n{way} " in table


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_a_training_step_is_compared_with_the_network_step_by_step(capsys):
    table = printed(capsys, "train", "--arch", "vgg5", "--width", "0.1")
    for way in ("float32", "bf16", "step by step"):
        assert f"\n{way} " in table


def test_a_layer_of_neurons_is_compared_with_its_loop_over_timesteps(capsys):
    table = printed(capsys, "neuron")
    for way in ("one call", "compiled", "loop"):
        assert f"\n{way} " in table


@pytest.mark.parametrize("flags", [["neuron", "--arch", "fc"], ["train", "--samples", "1"]])
def test_what_a_table_cannot_use_is_refused_(flags):
    with pytest.raises(BadInput, match=r"--arch|--samples"):
        bench.main(flags)


def test_the_network_step_by_step_computes_the_same(float64):
    single, model = (archs.build("vgg5", timestep=t, num_classes=10, width=0.2) for t in (1, 3))
    single.load_state_dict(model.state_dict())
    x = 3 * torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(bench.StepByStep(single, 3)(x), model(x))


def test_a_network_of_a_file_is_measured_in_chosen_ways(tmp_path, capsys):
    source = """
from archs import build


def net(timestep, num_classes):
    return build("fc", timestep=timestep, num_classes=num_classes, width=0.1, image_size=8)
"""
    (tmp_path / "net.py").write_text(source)
    code = f"{tmp_path}/net.py:net"
    table = printed(capsys, "fisher", "--arch", code, "--image_size", "8", "--ways", "estimator")
    assert "\nP " in table and "\nestimator " in table and "released" not in table
    with pytest.raises(BadInput, match="unknown --ways nothing: choose from P, estimator"):
        printed(capsys, "fisher", "--arch", code, "--image_size", "8", "--ways", "nothing")
