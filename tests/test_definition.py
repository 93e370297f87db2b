"""The definition: equations 6 and 7 against closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state
from models import Readout, assert_same, settle
from torch import nn

import archs
from fisher import (
    batch_means,
    centroid,
    centroid_interval,
    draw_labels,
    one_by_one,
    prefix_losses,
    prefix_outputs,
    prefix_residuals,
    quotient,
)

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.usefixtures("float64")


def test_a_linear_softmax_layer_has_its_closed_form():
    model, x, y = Readout(5, 3), torch.randn(6, 4, 5), torch.randint(3, (6,))
    norms = one_by_one(model, x, y)
    for t in range(1, 5):
        p = model(x)[:t].mean(0).softmax(1)
        residual = (p - F.one_hot(y, 3)).square().sum(1)
        gain = x[:, :t].mean(1).square().sum(1)
        torch.testing.assert_close(norms["weight"][t - 1], residual * gain)
        torch.testing.assert_close(norms["bias"][t - 1], residual)


def test_resnet19_has_the_information_of_the_released_model():
    golden = np.load(GOLDEN / "resnet19.npz")
    model = archs.build("resnet19", timestep=int(golden["T"]), num_classes=10).eval()
    model.load_state_dict(golden_state(model.state_dict(), int(golden["seed"])))
    x, y = torch.from_numpy(golden["x"][:1]), torch.from_numpy(golden["y"][:1])
    norms = sum(one_by_one(model, x, y).values())
    np.testing.assert_allclose(norms.numpy(), golden["fisher_per_sample"][:, :1], rtol=1e-7)


class Stem(nn.Sequential):
    """The way into a spiking transformer: convolution, norm, and tokens by a transposition."""

    def forward(self, x):
        conv, norm, head = self
        tokens = norm(conv(x)).flatten(2).transpose(1, 2)
        return head(tokens.tanh().mean(1)).unsqueeze(0)


def test_a_single_sample_behind_batchnorm_and_a_transposition_is_right():
    """In torch 2.13 a batch of one gives wrong gradients there, on a CPU."""
    model = settle(Stem(nn.Conv2d(2, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Linear(6, 3)))
    x, y = torch.randn(1, 2, 8, 8), torch.tensor([1])
    pair = batch_means(model, x.repeat(2, 1, 1, 1), y.repeat(2), 2)
    assert_same(one_by_one(model, x, y), pair)


def test_prefixes_residuals_and_centroid_are_as_written():
    outputs, y = torch.randn(3, 2, 4), torch.tensor([1, 3])
    mean = outputs[:2].mean(0).requires_grad_()
    loss = F.cross_entropy(mean, y, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(prefix_outputs(outputs)[1], mean.detach())
    torch.testing.assert_close(prefix_losses(outputs, y)[1], loss.detach())
    torch.testing.assert_close(prefix_residuals(outputs, y)[1], gradient.square().sum(1))
    assert centroid(torch.ones(8)).item() == 4.5
    assert centroid(torch.tensor([1.0, 0, 3])).item() == (1 + 9) / 4
    without_loss = quotient(torch.tensor([0.0, 2e-9]), torch.tensor([0.0, 1e-9]))
    assert without_loss.tolist() == pytest.approx([0, 2])


def test_the_release_squares_the_gradient_of_a_batch_mean():
    model, x, y = Readout(5, 3), torch.randn(5, 4, 5), torch.randint(3, (5,))
    norms = batch_means(model, x, y, 2)
    for batch, samples in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        loss = F.cross_entropy(model(x[samples])[:3].mean(0), y[samples])
        gradient = torch.autograd.grad(loss, model.weight)[0]
        torch.testing.assert_close(norms["weight"][2, batch], gradient.square().sum())


def test_drawn_labels_follow_the_prediction_and_not_the_chunks():
    outputs = torch.randn(2, 1, 3).expand(2, 20000, 3)
    labels = draw_labels(outputs, torch.Generator().manual_seed(0))
    share = F.one_hot(labels, 3).double().mean(1)
    torch.testing.assert_close(share, prefix_outputs(outputs)[:, 0].softmax(1), atol=0.02, rtol=0)
    generator = torch.Generator().manual_seed(0)
    chunks = [draw_labels(chunk, generator) for chunk in outputs.split(7000, 1)]
    assert torch.equal(torch.cat(chunks, 1), labels)


def test_the_bootstrap_interval_covers_the_centroid_as_often_as_it_says():
    weights = torch.tensor([4.0, 2, 1]).view(3, 1)
    truth = centroid(weights)[0].item()
    samples = [weights * torch.empty(3, 60).exponential_() for _ in range(200)]
    intervals = [centroid_interval(sample, draws=400) for sample in samples]
    inside = [low <= truth <= high for low, high in intervals]
    assert 0.88 <= sum(inside) / len(inside) <= 0.99
    assert centroid_interval(samples[0]) == centroid_interval(samples[0])


def test_draws_without_information_do_not_count():
    one_of_four = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    assert centroid_interval(one_of_four) == (1.5, 1.5)


def test_a_paired_difference_of_centroids_is_sharper_than_two_intervals():
    samples = torch.tensor([4.0, 2, 1]).view(3, 1) * torch.empty(3, 100).exponential_()
    later = samples * torch.tensor([1.0, 1, 1.5]).view(3, 1)
    low, high = centroid_interval(later, samples)
    alone = centroid_interval(later)
    assert low > 0 and high - low < 0.5 * (alone[1] - alone[0])
