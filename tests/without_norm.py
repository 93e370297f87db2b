"""train_snn_fisherinfo.py, or prune_snn.py for a search, with BatchNorm as a plain affine map, so no sample sees the
others of its batch."""

import sys

import archs.layers
import prune_snn
import train_snn_fisherinfo
from utils import run_script


def affine(norm, x):
    shape = (-1, *(1,) * (x.dim() - 3))
    return x * norm.weight.view(shape) + norm.bias.view(shape)


if __name__ == "__main__":
    archs.layers.BatchNorm.forward = affine
    script = prune_snn if "--search_timestep" in sys.argv else train_snn_fisherinfo
    run_script(script.main, "without_norm.py")
