"""What tests share: a run, a precision, and figures that take no time to draw."""

import pytest
import torch

import drawing

pytest.register_assert_rewrite("helpers", "models")
from helpers import ALL, run  # noqa: E402


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
    def touch(figure, path):
        path.touch()
        return path

    monkeypatch.setattr(drawing, "write", touch)
