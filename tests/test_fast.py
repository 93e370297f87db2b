"""The fast estimator is the definition: on every network here, and on networks of other people."""

import gc

import pytest
import torch
import torch.nn.functional as F
from models import Function, Loop, Tokens, assert_exact, assert_same, network, settle
from torch import nn
from torch.utils.checkpoint import checkpoint

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


# -------------------------------------------------------------------- uses of a parameter


def conv(*shape):
    return nn.Conv1d(*shape, 3, padding=1)


def parameter(*shape):
    return nn.Parameter(torch.rand(shape) + 0.5)


def same_for_all(m, x):
    return m.a(x) + m.b(torch.eye(4))[:2].sum(0)


def routed(m, x):
    """An expert takes the rows whose content asks for it."""
    z = m.a(x).tanh()
    rows = x[..., 0] > 0
    return z.index_put((rows,), z[rows] + m.b(x[rows]))


def sorted_by_content(m, x):
    order = x[1, :, 1].argsort()
    return m.a(x[:, order]).tanh()[:, order.argsort()]


def recomputed(m, x):
    def part(v):
        return m.c(v.permute(1, 2, 0)).permute(2, 0, 1)

    return checkpoint(part, m.a(x).tanh(), use_reentrant=False)


def two_kinds(m, x):
    return F.linear(m.a(x), m.b.weight) * m.b.weight.sum(0)


def learned_neuron(m, x):
    """A learned time constant and threshold, as elsewhere."""
    v, spikes = 0, []
    for x_t in m.a(x):
        v = v + (x_t - v) * m.w.sigmoid()
        s = torch.sigmoid(4 * (v - m.threshold))
        v = v - s * m.threshold.clamp(min=0.1)
        spikes.append(s)
    return torch.stack(spikes)


def uses():
    """{name: (function, its other layers, parameters that are measured by the definition)}"""
    a, b = ("a.weight", "a.bias"), ("b.weight", "b.bias")
    mask = nn.Parameter(torch.ones(6, 1), requires_grad=False)
    complex_number = nn.Parameter(torch.randn((), dtype=torch.cdouble))
    complex_matrix = nn.Parameter(torch.randn(6, 6, dtype=torch.cdouble))
    gru, matrix, g, h = nn.GRU(6, 6), nn.Linear(6, 6, bias=False), parameter(6), parameter(1, 6)
    return {
        "a number": (lambda m, x: m.a(x) * m.g, {"g": parameter()}, ()),
        "added and divided": (lambda m, x: (m.a(x) - m.g) / m.h, {"g": g, "h": h}, ()),
        "a quotient of numbers": (
            lambda m, x: m.a(x) * (m.g / torch.tensor(2.0)),
            {"g": parameter()},
            ("g",),
        ),
        "by time": (lambda m, x: m.a(x) * m.g, {"g": parameter(4, 1, 6)}, ()),
        "complex": (lambda m, x: (m.a(x) * m.g).imag, {"g": complex_number}, ("g",)),
        "complex layer": (
            lambda m, x: F.linear(m.a(x).cdouble(), m.g).abs(),
            {"g": complex_matrix},
            ("g",),
        ),
        "a slice": (lambda m, x: m.a(x) + m.g[:4, None].exp(), {"g": parameter(7, 6)}, ()),
        "learned neuron": (learned_neuron, {"w": g, "threshold": parameter(6)}, ()),
        "two kinds": (two_kinds, {"b": matrix}, ()),
        "of another's shape": (lambda m, x: m.a(x) * m.g.expand_as(m.h), {"g": g, "h": h}, ()),
        "masked": (lambda m, x: F.linear(x, m.a.weight * m.mask), {"mask": mask}, ()),
        "one bias for all": (
            lambda m, x: F.linear(m.a(x), m.g, m.h),
            {"g": parameter(6, 6), "h": parameter(1)},
            ("g", "h"),
        ),
        "in place": (lambda m, x: F.relu(m.a(x), inplace=True), {}, ()),
        "in place on a view": (lambda m, x: F.relu(m.a(x.contiguous()), inplace=True), {}, ()),
        "recomputed": (recomputed, {"c": conv(6, 6)}, ()),
        "unused": (lambda m, x: m.a(x), {"b": nn.Linear(5, 6)}, ()),
        "tied": (lambda m, x: m.a(x).tanh() @ m.a.weight @ m.a.weight.T, {}, a[:1]),
        "mapped": (lambda m, x: torch.vmap(m.a)(x), {}, a),
        "recurrent": (
            lambda m, x: m.g(m.a(x))[0],
            {"g": gru},
            [f"g.{n}" for n in gru.state_dict()],
        ),
        "same for all": (same_for_all, {"b": nn.Linear(4, 6)}, b),
        "routed": (routed, {"b": nn.Linear(5, 6)}, b),
        "sorted": (sorted_by_content, {}, a),
    }


@pytest.mark.parametrize("name", uses())
@pytest.mark.filterwarnings("ignore:measured one sample at a time")
def test_a_parameter_may_be_used_otherwise(name):
    function, layers, slow = uses()[name]
    model, x, y = Function(function, **layers), torch.randn(9, 4, 5), torch.arange(9) % 3
    assert_exact(model, x, y, slow)
    # In batches of two, rows that are sorted by content may be in order by chance.
    assert_same(temporal_fisher(model, x, y, chunk=2), one_by_one(model, x, y))


def samples_first(layer, x):
    return layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def test_rows_of_a_layer_that_is_silent_at_first_are_read_when_it_is_not():
    def gated(m, x):
        return m.a(x) + (x[..., :1] > 0) * samples_first(m.b, x).tanh()

    x = torch.randn(32, 4, 5)
    x[:, :, 0] = x[:, :, 0].abs() * (torch.arange(32) >= 24)[:, None]
    assert_exact(Function(gated, b=nn.Linear(5, 6)), x, torch.arange(32) % 3, chunk=8)


@torch.library.custom_op("fisher_test::neuron", mutates_args=())
def neuron(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * w, x + w


def neuron_backward(ctx, d_product, d_sum):
    x, w = ctx.saved_tensors
    return d_product * w + d_sum, (d_product * x + d_sum).sum()


neuron.register_autograd(
    neuron_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def written_into(m, z, total):
    weight = torch.zeros(6, 6)
    weight[:] = m.b.weight
    return F.linear(z, weight)


def input_of_a_layer(m, z, total):
    return F.linear(m.b.weight, z.flatten(0, 1)).T.view_as(z)


@pytest.mark.parametrize(
    "second_use, slow",
    [
        (written_into, ["b.weight"]),
        (input_of_a_layer, ["b.weight"]),
        (lambda m, z, total: torch.vmap(m.b)(z), ["b.weight", "b.bias"]),
        (lambda m, z, total: total, []),
    ],
)
def test_a_second_use_that_only_later_samples_show_is_measured_too(second_use, slow):
    def gated(m, x):
        z = m.a(x)
        product, total = neuron(z, m.g)
        return m.b(z) + product + (x[..., :1] > 0) * second_use(m, z, total)

    x = torch.randn(9, 4, 5)
    x[:, :, 0] = x[:, :, 0].abs() * (torch.arange(9) >= 4)[:, None]
    model = Function(gated, b=nn.Linear(6, 6), g=parameter())
    assert_exact(model, x, torch.arange(9) % 3, slow)


def test_an_order_by_content_that_the_second_pass_shows_is_measured_too():
    model, x = Function(sorted_by_content), torch.randn(16, 4, 5)
    x = x[torch.cat([x[:8, 1, 1].argsort(), torch.arange(8, 16)])]  # the first 8 are in order
    assert_exact(model, x, torch.arange(16) % 3, slow=["a.weight", "a.bias"], chunk=8)


def in_order_of_content(m, x):
    order = x[1, :, 1].argsort()
    return m.a(x[:, order])[:, order.argsort()]


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


def test_a_checkpoint_around_a_block_changes_nothing():
    def recomputed(m, x):
        z = m.a(x.flatten(0, 1)).unsqueeze(2).expand(-1, -1, 4)
        return checkpoint(m.block, z, use_reentrant=False).mean(2).unflatten(0, x.shape[:2])

    norm = nn.BatchNorm1d(6)
    norm.bias.data.fill_(-0.1)
    model = Function(recomputed, block=nn.Sequential(conv(6, 6), norm, nn.ReLU()))
    x = torch.randn(9, 4, 5)
    x[:2] = 0  # these are silent, so they do not show how the block is recomputed
    model.a.bias.data.zero_()
    model.block[0].bias.data.zero_()
    assert_exact(model, x, torch.arange(9) % 3)


def test_the_number_of_samples_and_positions_may_change_between_batches():
    def folded(m, x):  # (T, N, positions, 5)
        return m.a(x.flatten(0, 2)).view(*x.shape[:3], 6).sum(2)

    model = Function(folded)
    estimator = TemporalFisher(model)
    for samples, positions in ((8, 16), (16, 8), (32, 4)):
        x, y = torch.randn(samples, 4, positions, 5), torch.arange(samples) % 3
        assert_same(estimator(x, y), one_by_one(model, x, y))


def test_prefixes_that_reach_later_timesteps_are_noticed_when_they_do():
    def attention_over_time(m, x):  # in samples that ask for it
        x = m.a(x)
        z = m.c(x.flatten(0, 1).unsqueeze(1)).mean(1).unflatten(0, x.shape[:2])
        return z + (x[0, :, :1] > 0.5) * z.tanh().sum(0)

    model = Function(attention_over_time, c=conv(1, 2))
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


def test_a_hook_of_a_gradient_is_obeyed():
    model = Function(lambda m, x: m.a(x))
    model.a.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    x = torch.randn(4, 4, 5) * torch.tensor([0.01, 0.01, 10, 10]).view(-1, 1, 1)
    assert_exact(model, x, torch.arange(4) % 3, slow=["a.weight"])


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
