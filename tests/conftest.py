"""What tests share: one thread, a run, a precision, and what is done with figures."""

import os

# Networks here are tiny. A thread more costs time, above all on a machine that is busy.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
import torch

import drawing
import eval_snn_robustness
import plots
import prune_snn

pytest.register_assert_rewrite("helpers", "models")
from helpers import ALL, run


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"), *ALL, script="train_snn_fisherinfo")


@pytest.fixture
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take as long as the rest of a tiny run: here scripts draw none."""

    def none(folder, path=None):
        return path or Path(folder) / "figures"

    monkeypatch.setattr(plots, "training", none)
    monkeypatch.setattr(plots, "fisher_of", none)
    monkeypatch.setattr(prune_snn, "error_figure", none)
    monkeypatch.setattr(eval_snn_robustness, "accuracy_figure", none)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, by file name; none is written."""
    drawn = {}

    def keep(figure, path):
        drawn[path.name] = figure
        return path

    monkeypatch.setattr(drawing, "write", keep)
    return drawn
