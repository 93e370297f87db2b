"""The fast estimator is the definition: on every network here, and on networks of other people."""

import gc

import pytest
import torch
from models import Function, Loop, Tokens, assert_exact, assert_same, network, settle
from torch import nn

import archs
from fisher import TemporalFisher, one_by_one, temporal_fisher

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("arch", archs.ARCHS)
@pytest.mark.parametrize("timestep, samples, frames", [(1, 2, False), (3, 1, True), (4, 3, False)])
def test_every_network_here(arch, timestep, samples, frames):
    x = torch.randn(samples, *([timestep] if frames else []), 2, 8, 8)
    assert_exact(network(arch, timestep), x, torch.arange(samples), chunk=2)


@pytest.mark.parametrize(
    "neuron",
    [
        {"reset": "soft", "surrogate": "sigmoid"},
        {"decay_input": False, "surrogate": "triangle"},
        {"detach_reset": False},
        {"detach_membrane": True},
        {"norm": "folded", "tau": 4 / 3},
        {"surrogate": "rectangle", "surrogate_alpha": 1e3, "threshold": 100.0},  # never spikes
    ],
)
def test_every_neuron_here(neuron):
    assert_exact(network(**neuron), torch.randn(3, 2, 8, 8), torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
@pytest.mark.parametrize("labels", [(5,), (3, 5)])
def test_both_prefixes_and_labels_for_each_t(prefix, labels):
    x, y = torch.randn(5, 2, 8, 8), torch.randint(4, labels)
    assert_exact(network(), x, y, prefix=prefix, chunk=2)


def test_a_transformer_with_position_embedding_and_layer_scale():
    assert_exact(settle(Tokens()), torch.randn(5, 4, 2, 8), torch.arange(5) % 3, chunk=3)


@pytest.mark.parametrize("way", [True, False, None])
def test_norms_through_gram_matrices_are_those_of_the_gradients(way, monkeypatch):
    if way is not None:
        monkeypatch.setattr("fisher.norms.pays", lambda uses, timesteps: way)
    assert_exact(network(size=16), torch.randn(3, 2, 16, 16), torch.arange(3))
    assert_exact(Loop().eval(), torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]), chunk=3)


def test_prefixes_that_reach_later_timesteps_are_noticed_when_they_do():
    def attention_over_time(m, x):  # in samples that ask for it
        x = m.a(x)
        z = m.c(x.flatten(0, 1).unsqueeze(1)).mean(1).unflatten(0, x.shape[:2])
        return z + (x[0, :, :1] > 0.5) * z.tanh().sum(0)

    model = Function(attention_over_time, c=nn.Conv1d(1, 2, 3, padding=1))
    x = torch.randn(8, 4, 5)
    order = model.a(x)[:, 0, 0].detach().argsort()  # the first batch asks for nothing
    assert_exact(model, x[order], torch.arange(8) % 3, chunk=2)


def test_skipped_parameters_are_left_out():
    model = Function(lambda m, x: m.b(m.a(x))[0], b=nn.GRU(6, 6))
    x, y = torch.randn(3, 4, 5), torch.arange(3)
    norms = temporal_fisher(model, x, y, skip=("b.*",))
    assert list(norms) == ["a.weight", "a.bias", "r.weight", "r.bias"]
    assert_same(norms, one_by_one(model, x, y, names=norms))


def test_model_gradients_and_random_state_stay_as_they_were():
    model, x, y = network(), torch.randn(3, 2, 8, 8), torch.arange(3)
    model.conv1.weight.grad = gradient = torch.ones_like(model.conv1.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        temporal_fisher(model, x.requires_grad_(), y, skip=("conv2.*",))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.conv1.weight.grad is gradient and model.conv2.weight.grad is None
    assert x.grad is None


def test_no_memory_is_held_from_batch_to_batch():
    def tensors():
        gc.collect()
        return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())

    model, x, y = network(), torch.randn(3, 2, 8, 8), torch.arange(3)
    estimator = TemporalFisher(model)
    estimator(x, y)
    before = tensors()
    estimator(x, y)
    assert tensors() == before


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_other_precisions_are_near(dtype, tolerance):
    model, x, y = settle(Tokens()), torch.randn(6, 4, 2, 8), torch.arange(6) % 3
    model.unused = nn.Linear(2, 2).eval()
    expected = sum(one_by_one(model, x, y).values())
    norms = temporal_fisher(model.to(dtype), x.to(dtype), y)
    torch.testing.assert_close(sum(norms.values()).double(), expected, rtol=tolerance, atol=0)


def test_half_the_chunk_is_taken_when_memory_runs_out():
    model, sizes = Function(lambda m, x: m.a(x)), []

    def fail(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(fail)
    assert_exact(model, torch.randn(9, 4, 5), torch.arange(9) % 3, chunk=8)
    assert 8 in sizes and 4 in sizes


# -------------------------------------------------------------------- models of other libraries


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_spikingjelly_with_parametric_neurons(dtype, tolerance):
    """In float32 its neurons are one operator, torch.ops.sj_plif."""
    pytest.importorskip("spikingjelly")
    from examples.spikingjelly_net import sew_resnet

    model = settle(sew_resnet(3, 4, 2, tau=2.0, width=0.1)).to(dtype)
    x = torch.randn(5, 2, 8, 8).to(dtype)
    assert_exact(model, x, torch.arange(5) % 4, (), tolerance, chunk=3)


def test_snntorch_with_learned_time_constant_and_threshold():
    snntorch = pytest.importorskip("snntorch")
    from examples.snntorch_net import build

    model = build(timestep=3, num_classes=4, in_channels=2, image_size=(8, 8), tau=2.0, width=0.1)
    model.lif2 = snntorch.Leaky(beta=0.8, learn_beta=True, learn_threshold=True)
    x = torch.randn(5, 2, 8, 8).float()
    assert_exact(settle(model.float()), x, torch.arange(5) % 4, tolerance=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arch", archs.ARCHS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_cuda_agrees_with_the_definition(arch, dtype, tolerance):
    model, x = network(arch).to("cuda", dtype), torch.randn(3, 2, 8, 8).to("cuda", dtype)
    y = torch.arange(3, device="cuda")
    norms, expected = temporal_fisher(model, x, y, chunk=1), one_by_one(model, x, y)
    torch.testing.assert_close(sum(norms.values()), sum(expected.values()), rtol=tolerance, atol=0)
