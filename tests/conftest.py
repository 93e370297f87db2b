"""What tests share: a run, and a precision."""

import pytest
import torch

pytest.register_assert_rewrite("helpers", "models")

from helpers import ALL, run  # noqa: E402

import plots  # noqa: E402


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
    """Figures are empty files: rendering takes longer than the runs."""

    def touch(figure, path):
        path.touch()
        return path

    monkeypatch.setattr(plots, "write", touch)
