"""The estimator: closed forms, the released model's numbers, and one sample at a time over all networks here."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state
from models import Loop, SamplesFirst, Steps, assert_exact_and_fast, assert_same, settle
from torch.utils._python_dispatch import TorchDispatchMode

import archs
import fisher
from fisher import (
    TemporalFisher,
    centroid,
    centroid_interval,
    draw_labels,
    one_by_one,
    prefix_losses,
    prefix_outputs,
    prefix_residuals,
    quotient,
    temporal_fisher,
)

GOLDEN = Path(__file__).parent / "golden"


pytestmark = pytest.mark.usefixtures("float64")


def test_a_linear_softmax_layer_has_its_closed_form():
    model, x, y = Steps(), torch.randn(6, 4, 5), torch.randint(3, (6,))
    norms = temporal_fisher(model, x, y)
    for t in range(1, 5):
        p = model(x)[:t].mean(0).softmax(1)
        residual = (p - F.one_hot(y, 3)).square().sum(1)
        expected = residual * (x[:, :t].mean(1).square().sum(1) + 1)
        torch.testing.assert_close(
            norms["readout.weight"][t - 1] + norms["readout.bias"][t - 1], expected
        )


def test_resnet19_has_the_released_models_information():
    golden = np.load(GOLDEN / "resnet19.npz")
    model = archs.build("resnet19", timestep=int(golden["T"]), num_classes=10).eval()
    model.load_state_dict(golden_state(model.state_dict(), int(golden["seed"])))
    norms = temporal_fisher(model, torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"]))
    np.testing.assert_allclose(sum(norms.values()).numpy(), golden["fisher_per_sample"], rtol=1e-7)


@pytest.mark.parametrize("arch", archs.ARCHS)
@pytest.mark.parametrize(
    "timestep, samples, frames", [(1, 2, False), (3, 1, True), (4, 3, False), (2, 3, True)]
)
def test_every_arch_agrees_with_one_sample_at_a_time(arch, timestep, samples, frames):
    model = settle(
        archs.build(arch, timestep=timestep, num_classes=4, in_channels=2, image_size=10, width=0.1)
    )
    x = torch.randn(samples, *([timestep] if frames else []), 2, 10, 10)
    assert_exact_and_fast(model, x, torch.arange(samples), chunk=2)


@pytest.mark.parametrize(
    "neuron",
    [dict(reset="soft"), dict(decay_input=False), dict(detach_reset=False), dict(tau=4 / 3, threshold=0.5),
     dict(detach_membrane=True),
     dict(surrogate="sigmoid"), dict(surrogate="triangle", surrogate_alpha=0.4), dict(norm="folded"),
     dict(surrogate="rectangle", surrogate_alpha=0.4)],
)  # fmt: skip
def test_every_neuron_agrees_with_one_sample_at_a_time(neuron):
    model = settle(
        archs.build(
            "vgg5", timestep=3, num_classes=4, in_channels=1, image_size=8, width=0.1, **neuron
        )
    )
    assert_exact_and_fast(model, torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3]))


def test_both_ways_to_a_norm_are_used_and_agree(monkeypatch):
    model = settle(
        archs.build("vgg5", timestep=3, num_classes=4, in_channels=2, image_size=16, width=0.2)
    )
    x, y, used = torch.randn(3, 2, 16, 16), torch.arange(3), set()
    for name in ("_norm_by_gram", "_norm_by_gradient"):
        way = getattr(fisher, name)
        monkeypatch.setattr(
            fisher, name, lambda *args, name=name, way=way: used.add(name) or way(*args)
        )
    chosen = temporal_fisher(model, x, y)
    assert used == {"_norm_by_gram", "_norm_by_gradient"}
    for pays in (True, False):
        monkeypatch.setattr(
            fisher,
            "_gram_pays",
            lambda uses, timestep, pays=pays: pays and bool(uses[0].call.weight_shape),
        )
        assert_same(temporal_fisher(model, x, y), chosen)


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
def test_instant_prefixes_and_labels_of_their_own_for_each_t(prefix):
    model = settle(
        archs.build("vgg5", timestep=3, num_classes=4, in_channels=1, image_size=8, width=0.1)
    )
    x, y = torch.randn(5, 1, 8, 8), torch.randint(4, (3, 5))
    found = temporal_fisher(model, x, y, prefix=prefix, chunk=2)
    assert_same(found, one_by_one(model, x, y, prefix=prefix))
    params = list(model.parameters())
    outputs = model(x[:1])[:, 0]
    chosen = outputs[2] if prefix == "instant" else outputs.mean(0)
    grads = torch.autograd.grad(F.cross_entropy(chosen, y[2, 0]), params)
    torch.testing.assert_close(
        sum(v[2, 0] for v in found.values()), sum(g.square().sum() for g in grads)
    )


def test_drawn_labels_follow_the_prediction_and_not_the_chunks():
    outputs = torch.randn(2, 1, 3).expand(2, 20000, 3)
    labels = draw_labels(outputs, torch.Generator().manual_seed(0))
    share = F.one_hot(labels, 3).double().mean(1)
    torch.testing.assert_close(share, prefix_outputs(outputs)[:, 0].softmax(1), atol=0.02, rtol=0)
    generator = torch.Generator().manual_seed(0)
    parts = [draw_labels(part, generator) for part in outputs.split(7000, 1)]
    assert torch.equal(torch.cat(parts, 1), labels)


def test_the_release_squares_the_gradient_of_a_batch_mean():
    model, x, y = Steps(), torch.randn(5, 4, 5), torch.randint(3, (5,))
    found = fisher.batch_means(model, x, y, 2)
    for batch, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        for t in range(1, 5):
            loss = F.cross_entropy(model(x[part])[:t].mean(0), y[part])
            for (name, _), grad in zip(
                model.named_parameters(), torch.autograd.grad(loss, list(model.parameters()))
            ):
                torch.testing.assert_close(found[name][t - 1, batch], grad.square().sum())


def test_a_paired_difference_of_centroids_is_sharper_than_two_intervals():
    samples = torch.tensor([4.0, 2, 1]).view(3, 1) * torch.empty(3, 100).exponential_()
    later = samples * torch.tensor([1.0, 1, 1.5]).view(3, 1)
    low, high = centroid_interval(later, samples)
    assert low > 0 and high - low < 0.5 * (
        centroid_interval(later)[1] - centroid_interval(later)[0]
    )


@pytest.mark.parametrize("arch", ["fc", "vgg5", "resnet20"])
def test_a_network_without_a_spike_or_gradient_is_exact_and_fast(arch):
    dead = dict(surrogate="rectangle", surrogate_alpha=1e3, threshold=100.0, width=0.1)
    model = settle(
        archs.build(arch, timestep=3, num_classes=4, in_channels=1, image_size=8, **dead)
    )
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert_exact_and_fast(model, x, y)


def test_batch_statistics_are_refused_with_the_cure():
    model = archs.build("vgg5", timestep=2, num_classes=3, image_size=8, width=0.1)
    with pytest.raises(ValueError, match=r"bn1 .*model\.eval\(\)"):
        temporal_fisher(model, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))


def test_model_and_random_state_are_left_as_they_were():
    model = settle(archs.build("vgg5", timestep=2, num_classes=3, image_size=8, width=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        temporal_fisher(
            model,
            torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0, 1]),
        )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (
        all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training
    )


@pytest.mark.parametrize("live", [0, 1, 3, 4])
def test_live_rows_are_found_in_one_look_as_in_many(live):
    d = torch.randn(8, 3, 5)
    d[2 * live :] = 0
    d[:2, 0] = float("nan") if live else 0
    assert fisher._live_rows(d, 2) == fisher._live_rows_at_once(d, 2) == 2 * live


def test_float32_is_near_float64():
    model = settle(
        archs.build("vgg9", timestep=4, num_classes=4, in_channels=1, image_size=16, width=0.2)
    )
    x, y = torch.randn(6, 1, 16, 16), torch.randint(4, (6,))
    single = model.float()
    assert_same(
        temporal_fisher(single, x.float(), y), one_by_one(single, x.float(), y), tolerance=1e-3
    )


def network(arch="vgg5", **options):
    return settle(
        archs.build(
            arch, timestep=3, num_classes=4, in_channels=2, image_size=12, width=0.2, **options
        )
    )


CUDA = {arch: lambda arch=arch: (network(arch), (2, 12, 12)) for arch in archs.ARCHS} | {
    "soft": lambda: (network(reset="soft", surrogate="triangle"), (2, 12, 12)),
    "folded": lambda: (network(norm="folded", detach_reset=False), (2, 12, 12)),
    "loop": lambda: (Loop(), (2, 6, 6)),
    "samples first": lambda: (settle(SamplesFirst()), (4, 2, 8)),
}


def test_a_model_is_examined_without_tf32_and_measured_as_it_was_set():
    """TF32 truncates: what it leaves of a norm would be taken for another one."""
    model, seen = Loop(), []
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [kind.fp32_precision for kind in settings]
    model.register_forward_hook(lambda *_: seen.append([kind.fp32_precision for kind in settings]))
    temporal_fisher(model, torch.randn(3, 2, 6, 6), torch.arange(3))
    assert (
        seen[-1] == before
        and all(found == ["ieee", "ieee"] for found in seen[:-1])
        and len(seen) > 2
    )
    assert [kind.fp32_precision for kind in settings] == before


class TF32(TorchDispatchMode):
    """Convolutions round as a GPU's do by default: what they multiply, to 10 bits behind the point."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = {"aten::convolution": 2, "aten::convolution_backward": 3}.get(
            func._schema.name, 0
        )
        args = [*map(self.rounded, args[:tensors]), *args[tensors:]]
        return func(*args, **(kwargs or {}))

    def rounded(self, operand):
        return ((operand.clone().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_the_rounding_of_tf32_is_not_taken_for_rows_of_other_samples():
    model, x, y = (
        network("resnet19").float(),
        torch.randn(20, 2, 12, 12).float(),
        torch.arange(20) % 4,
    )
    estimator = TemporalFisher(model)
    estimator.probe(x, len(x))  # which forbids it
    with TF32(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(estimator(x, y), one_by_one(model, x, y), tolerance=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CUDA)
@pytest.mark.parametrize(
    "dtype, tolerance, chunk", [(torch.float64, 1e-9, None), (torch.float32, 1e-4, 1)]
)
def test_cuda_agrees_with_one_sample_at_a_time(name, dtype, tolerance, chunk):
    """In float32 one sample at a time both ways: a batch may have other convolutions, whose rounding flips spikes."""
    model, shape = CUDA[name]()
    model, x, y = (
        model.to("cuda", dtype),
        torch.randn(3, *shape).to("cuda", dtype),
        torch.arange(3, device="cuda"),
    )
    with fisher._full_precision():
        found, expected = temporal_fisher(model, x, y, chunk=chunk), one_by_one(model, x, y)
    torch.testing.assert_close(sum(found.values()), sum(expected.values()), rtol=tolerance, atol=0)


def test_prefixes_and_centroid_are_as_written():
    outputs, y = torch.randn(3, 2, 4), torch.tensor([1, 3])
    torch.testing.assert_close(prefix_outputs(outputs)[1], outputs[:2].mean(0))
    expected = -outputs[:2].mean(0).log_softmax(1)[torch.arange(2), y]
    torch.testing.assert_close(prefix_losses(outputs, y)[1], expected)
    logits = outputs[:2].mean(0).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    torch.testing.assert_close(prefix_residuals(outputs, y)[1], gradient.square().sum(1))
    assert centroid(torch.ones(8)).item() == 4.5
    assert centroid(torch.tensor([1.0, 0, 3])).item() == (1 + 9) / 4


def test_the_bootstrap_interval_covers_the_centroid_as_often_as_it_says():
    weights = torch.tensor([4.0, 2, 1]).view(3, 1)
    truth = centroid(weights)[0].item()
    samples = [weights * torch.empty(3, 60).exponential_() for _ in range(200)]
    inside = [
        low <= truth <= high for low, high in (centroid_interval(s, draws=400) for s in samples)
    ]
    assert 0.88 <= sum(inside) / len(inside) <= 0.99
    assert centroid_interval(samples[0]) == centroid_interval(samples[0])


def test_the_interval_is_two_sided_over_all_samples():
    samples = torch.zeros(2, 400, dtype=torch.float64)
    samples[0], samples[1, ::2] = 1, 2  # of each sample c is 1 or 5 / 3
    low, high = centroid_interval(samples, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / 400**0.5, rel=0.06)
    alone = torch.eye(
        2, dtype=torch.float64
    )  # a last sample at t = 2: with N draws of N, half of all weight
    assert centroid_interval(alone) == (1, 2)


def test_labels_of_the_prefixes_are_drawn_independently():
    labels = draw_labels(torch.zeros(2, 4000, 2), torch.Generator().manual_seed(0), "instant")
    assert (labels[0] == labels[1]).double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_quotient_is_0_without_a_loss_alone():
    assert quotient(torch.tensor([0.0, 2e-9]), torch.tensor([0.0, 1e-9])).tolist() == pytest.approx(
        [0, 2]
    )
    assert fisher.RELEASE_BATCH == 128
