"""Each loss is its formula, written out here for one sample after the other."""

from argparse import Namespace

import pytest
import torch
from helpers import run

import losses
from utils import read_lines

T, N, K = 4, 5, 3
DEFAULTS = dict(
    loss="ce", lossskiptime=[], loss_threshold=None, label_smoothing=0.0, tet_lambda=0.05, prefix_time=[1, 2],
    prefix_weight=0.5, target_ic=None,
)  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(T, N, K, generator=generator, dtype=torch.float64)
    return outputs.requires_grad_(), torch.randint(K, (N,), generator=generator)


def cross_entropy(outputs, y):
    """Mean over samples of -log softmax(o)_y, from its definition."""
    return sum(-(o[k] - o.exp().sum().log()) for o, k in zip(outputs, y)) / len(y)


def prefix_ce(outputs, y, t, skip=()):
    kept = [s for s in range(t) if s + 1 not in skip]
    return cross_entropy(sum(outputs[s] for s in kept) / len(kept), y)


def written_out(settings, o, y):
    a = Namespace(**DEFAULTS | settings)

    def flood(loss):
        return loss if a.loss_threshold is None else abs(loss - a.loss_threshold) + a.loss_threshold

    kept = [t for t in range(1, T + 1) if t not in a.lossskiptime]
    whole = prefix_ce(o, y, T, a.lossskiptime)
    if a.loss == "ce":
        return flood(whole)
    if a.loss == "tet":
        per_step = sum(flood(cross_entropy(o[t - 1], y)) for t in kept) / len(kept)
        square = sum(((o[t - 1] - 1) ** 2).mean() for t in kept) / len(kept)
        return (1 - a.tet_lambda) * per_step + a.tet_lambda * square
    if a.loss == "prefix":
        early = [flood(prefix_ce(o, y, t, a.lossskiptime)) for t in a.prefix_time]
        return (1 - a.prefix_weight) * whole + a.prefix_weight * sum(early) / len(early)
    r = []
    for t in range(1, T + 1):
        steps = [s for s in range(t) if s + 1 not in a.lossskiptime]
        p = (
            [(sum(o[s, n] for s in steps) / len(steps)).softmax(0) for n in range(N)]
            if steps
            else []
        )
        r.append(sum(((p_n - torch.eye(K)[k]) ** 2).sum() for p_n, k in zip(p, y)) / N)
    found = sum(t * r_t for t, r_t in enumerate(r, 1)) / sum(r)
    return whole + (found - a.target_ic) ** 2


@pytest.mark.parametrize("skip", [[], [1], [2, 4]])
@pytest.mark.parametrize("level", [None, 0.9, 1.5])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ce"},
        {"loss": "tet"},
        {"loss": "tet", "tet_lambda": 0.0},
        {"loss": "prefix", "prefix_time": [2, 3]},
        {"loss": "prefix", "prefix_time": [4], "prefix_weight": 0.2},
        {"loss": "centroid", "target_ic": 1.5},
    ],
    ids=str,
)
def test_a_loss_is_its_formula(settings, level, skip, batch):
    settings |= {"lossskiptime": skip} | (
        {} if settings["loss"] == "centroid" else {"loss_threshold": level}
    )
    outputs, y = batch
    loss = losses.make(Namespace(**DEFAULTS | settings))(outputs, y)
    torch.testing.assert_close(loss, written_out(settings, outputs, y), rtol=1e-12, atol=0)
    (found,), (expected,) = (
        torch.autograd.grad(v, outputs) for v in (loss, written_out(settings, outputs, y))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert all((found[t - 1] == 0).all() for t in skip)
    assert (found[[t - 1 for t in range(1, T + 1) if t not in skip]] != 0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ce", "loss_threshold": 1.5},  # between those of the shares
        {"loss": "tet", "loss_threshold": 1.2},
        {"loss": "prefix", "loss_threshold": 3.0},
        {"loss": "centroid", "target_ic": 1.5},
    ],
    ids=str,
)
def test_a_loss_over_the_shares_of_two_processes_is_that_of_the_whole_batch(
    settings, batch, monkeypatch
):
    """Flooding and the centroid are not linear in a mean: those of the shares would be another loss."""
    (outputs, y), shares = batch, (slice(2), slice(2, N))
    expected, loss = (
        written_out(settings, outputs, y),
        losses.make(Namespace(**DEFAULTS | settings)),
    )
    (alone,) = torch.autograd.grad(
        sum(loss(outputs[:, s], y[s]) * len(y[s]) / N for s in shares), outputs
    )
    sums = []
    monkeypatch.setattr(losses, "processes", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda own: sums.append(own.clone()))
    for share in shares:
        loss(outputs[:, share], y[share])
    monkeypatch.setattr(losses.dist, "all_reduce", lambda own: own.copy_(sum(sums)))
    found = sum(loss(outputs[:, share], y[share]) * len(y[share]) / N for share in shares)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (found,), (expected,) = (torch.autograd.grad(value, outputs) for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(alone, expected)


def test_the_cross_entropy_of_the_mean_output_is_torchs(batch):
    outputs, y = batch
    expected = torch.nn.functional.cross_entropy(outputs.mean(0), y, label_smoothing=0.1)
    found = losses.make(Namespace(**DEFAULTS | {"label_smoothing": 0.1}))(outputs, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_residual_is_the_gradient_by_the_read_outs_bias(batch):
    outputs, y = batch
    bias = torch.zeros(N, K, dtype=torch.float64, requires_grad=True)  # one for each sample
    r = losses.residuals(outputs, y)
    for t in range(T):
        loss = torch.nn.functional.cross_entropy(
            outputs[: t + 1].mean(0) + bias, y, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, bias)
        torch.testing.assert_close(r[t], gradient.square().sum(1).mean(), rtol=1e-12, atol=0)


def test_the_loss_that_is_named_is_the_one_that_is_trained(tmp_path):
    a = run(tmp_path / "a", "--epochs", "1")
    b = run(
        tmp_path / "b",
        "--epochs",
        "1",
        "--loss",
        "prefix",
        "--prefix_time",
        "2",
        "--prefix_weight",
        "1",
    )
    c = run(tmp_path / "c", "--epochs", "1", "--loss", "tet")
    first, second, third = (
        [line["train_loss"] for line in read_lines(f / "log.jsonl")] for f in (a, b, c)
    )
    assert first[1] == pytest.approx(second[1]) and first != third


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_smoothed_labels_are_in_every_cross_entropy_of_a_loss(loss, batch, monkeypatch):
    (outputs, y), plain, settings = batch, cross_entropy, {"loss": loss, "target_ic": 1.5}

    def smoothed(o, y):
        return 0.9 * plain(o, y) + 0.1 * sum(plain(o, torch.full_like(y, k)) for k in range(K)) / K

    monkeypatch.setitem(globals(), "cross_entropy", smoothed)
    found = losses.make(Namespace(**DEFAULTS | settings | {"label_smoothing": 0.1}))(outputs, y)
    torch.testing.assert_close(found, written_out(settings, outputs, y), rtol=1e-12, atol=0)
