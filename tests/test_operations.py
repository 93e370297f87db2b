"""Synaptic operations: additions of a spiking network, multiply-accumulates of one without."""

import pytest
import torch

import archs
import pruning
from operations import count_operations, operations_per_image
from utils import read_lines


@torch.no_grad()
def counted(model, x, timestep=1, images=7):
    with count_operations(model) as counts:
        model(x)
    operations = operations_per_image(counts, images, timestep)
    return [list(by_layer.values()) for by_layer in operations.values()]


def test_synaptic_operations_are_the_kept_multiply_accumulates_of_active_inputs():
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    model = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(48, 5))
    x = torch.ones(7, 2, 4, 4)
    first, second = 2 * 9 * 3 * 16, 48 * 5
    assert counted(model, x)[0] == pytest.approx([first, second])
    pruning.apply(model, pruning.prune(model, pruning.all_kept(model, x), 0.5))
    x[:, 0] = 0
    assert sum(counted(model, x)[0]) == pytest.approx(first / 2 + second / 2)


@pytest.mark.parametrize("frames", [False, True])
def test_each_layer_has_its_additions_and_the_products_of_one_timestep(frames):
    vgg = archs.build("vgg5", timestep=3, num_classes=5, image_size=8, width=0.1, threshold=0.3)
    model = torch.nn.Sequential(vgg.conv1, vgg.repeat, vgg.lif1, vgg.conv2)
    x = torch.rand(3 if frames else 1, 4, 3, 8, 8)  # (T, N, C, H, W)
    rate = model[:3](x).mean().item()
    additions, dense = counted(model, x, timestep=3, images=4)
    first, second = 3 * 9 * 6 * 64, 6 * 9 * 13 * 64
    assert dense == [first, second]
    assert 0 < rate < 1
    assert additions == pytest.approx([first * (3 if frames else 1), 3 * second * rate])


def test_operations_are_logged_for_each_layer_and_epoch(unbroken):
    dense = {"fc1": 2 * 8 * 8 * 26, "fc2": 26 * 10}
    for line in read_lines(unbroken / "log.jsonl"):
        assert line["multiply_accumulates"] == dense
        assert 0 < line["synaptic_operations"]["fc1"] <= 2 * dense["fc1"]  # of two timesteps
