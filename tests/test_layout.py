"""Whose a row of a layer is: in any order of samples, and where rows are silent."""

import pytest
import torch
from models import Function, assert_exact, assert_same
from torch import nn

from fisher import TemporalFisher, one_by_one

pytestmark = pytest.mark.usefixtures("float64")


def samples_first(layer, x):
    return layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def in_order_of_content(m, x):
    order = x[1, :, 1].argsort()
    return m.a(x[:, order])[:, order.argsort()]


def test_rows_of_a_layer_that_is_silent_at_first_are_read_when_it_is_not():
    def gated(m, x):
        return m.a(x) + (x[..., :1] > 0) * samples_first(m.b, x).tanh()

    x = torch.randn(32, 4, 5)
    x[:, :, 0] = x[:, :, 0].abs() * (torch.arange(32) >= 24)[:, None]
    assert_exact(Function(gated, b=nn.Linear(5, 6)), x, torch.arange(32) % 3, chunk=8)


def test_an_order_by_content_that_the_second_pass_shows_is_measured_too():
    model, x = Function(in_order_of_content), torch.randn(16, 4, 5)
    x = x[torch.cat([x[:8, 1, 1].argsort(), torch.arange(8, 16)])]  # the first 8 are in order
    assert_exact(model, x, torch.arange(16) % 3, slow=["a.weight", "a.bias"], chunk=8)


@pytest.mark.parametrize(
    "function, slow",
    [
        (lambda m, x: samples_first(m.a, x), []),
        (in_order_of_content, ["a.weight", "a.bias"]),
    ],
)
def test_samples_that_end_without_a_loss_have_their_rows(function, slow):
    model, x = Function(function), torch.randn(32, 4, 5)
    x[:2, 1, 1] = torch.tensor([-9.0, -8.0])  # the first two are in order
    x[2:, -1] *= 1e7  # the last prediction is 0 or 1, and the label is the 1
    assert_exact(model, x, model(x).mean(0).argmax(1), slow, chunk=8)


def test_the_number_of_samples_and_positions_may_change_between_batches():
    def folded(m, x):  # (T, N, positions, 5)
        return m.a(x.flatten(0, 2)).view(*x.shape[:3], 6).sum(2)

    model = Function(folded)
    estimator = TemporalFisher(model)
    for samples, positions in ((8, 16), (16, 8), (32, 4)):
        x, y = torch.randn(samples, 4, positions, 5), torch.arange(samples) % 3
        assert_same(estimator(x, y), one_by_one(model, x, y))
