"""Losses: each is its formula, its gradient too, with skipped outputs, flooding and smoothing."""

from argparse import Namespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import losses

T, N, K = 4, 6, 3
SMOOTHING = 0.1
FLAGS = {"lossskiptime": [], "loss_threshold": None, "label_smoothing": SMOOTHING, "target_ic": 1.5,
         "tet_lambda": 0.2, "prefix_time": [2, 3], "prefix_weight": 0.3}  # fmt: skip


def make_batch():
    """Outputs [T, N, K] and labels [N], the same in every call."""
    torch.manual_seed(0)
    outputs = 2 * torch.randn(T, N, K, dtype=torch.float64)
    return outputs.requires_grad_(), torch.randint(K, (N,))


def loss_of(name, outputs, y, **flags):
    """The loss of that name as a training script makes it."""
    return losses.make(Namespace(loss=name, **FLAGS | flags))(outputs, y)


def used(outputs, t, skip):
    """The outputs 1..t without those of `skip`."""
    return torch.stack([outputs[s - 1] for s in range(1, t + 1) if s not in skip])


def cross_entropy(output, y):
    """- sum_k target_k log softmax(output)_k, with smoothed targets, in the mean over samples."""
    target = (1 - SMOOTHING) * torch.eye(K)[y] + SMOOTHING / K
    return -(target * output.softmax(1).log()).sum(1).mean()


def flooded(loss, level):
    return loss if level is None else (loss - level).abs() + level


def assert_same(loss, expected, outputs):
    """The same value, and the same gradient by the outputs."""
    torch.testing.assert_close(loss, expected)
    gradient = torch.autograd.grad(loss, outputs)
    expected_gradient = torch.autograd.grad(expected, outputs, retain_graph=True)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("skip, level", [([], None), ([2, 4], None), ([1], 0.9), ([1], 3.0)])
def test_a_loss_is_its_formula(skip, level):
    outputs, y = make_batch()
    steps = used(outputs, T, skip)
    each = torch.stack([flooded(cross_entropy(output, y), level) for output in steps])
    whole, two, three = (cross_entropy(used(outputs, t, skip).mean(0), y) for t in (T, 2, 3))
    expected = {
        "ce": flooded(whole, level),
        "tet": 0.8 * each.mean() + 0.2 * (steps - 1).square().mean(),
        "prefix": 0.7 * whole + 0.3 * (flooded(two, level) + flooded(three, level)) / 2,
    }
    for name, value in expected.items():
        loss = loss_of(name, outputs, y, lossskiptime=skip, loss_threshold=level)
        assert_same(loss, value, outputs)


def test_centroid_adds_the_squared_distance_of_the_residuals_centroid():
    outputs, y = make_batch()
    means = torch.stack([outputs[:t].mean(0) for t in range(1, T + 1)])
    r = (means.softmax(2) - F.one_hot(y, K)).square().sum(2).mean(1)
    centroid = (torch.arange(1, T + 1) * r).sum() / r.sum()
    expected = cross_entropy(outputs.mean(0), y) + (centroid - 1.5).square()
    assert_same(loss_of("centroid", outputs, y), expected, outputs)


def losses_with_gradients(samples):
    """Losses of these samples, none a mean over samples: level 1.5 lies between those of shares."""
    outputs, y = make_batch()
    results = []
    for name, level in (("ce", 1.5), ("tet", 1.5), ("prefix", 1.5), ("centroid", None)):
        loss = loss_of(name, outputs[:, samples], y[samples], loss_threshold=level)
        results.append(torch.stack([loss, *torch.autograd.grad(loss, outputs)[0].flatten()]))
    return torch.stack(results).detach()


def save_share(number, folder):
    """What each of two processes does."""
    dist.init_process_group("gloo", f"file://{folder}/group", rank=number, world_size=2)
    torch.save(losses_with_gradients(slice(number, N, 2)), folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()  # else its threads may abort a process that ends


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(save_share, (tmp_path,), nprocs=2)
    mean = sum(torch.load(tmp_path / f"{number}.pt") for number in range(2)) / 2
    torch.testing.assert_close(mean, losses_with_gradients(slice(None)))
