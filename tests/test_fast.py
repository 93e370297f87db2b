"""The fast estimator is the definition: on every network here, on networks of other people, or it
refuses with the cure."""

import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from models import Function, Loop, Readout, Tokens, assert_exact, assert_same, settle
from torch import nn
from torch.utils.checkpoint import checkpoint

import archs
from fisher import TemporalFisher, one_by_one, temporal_fisher

pytestmark = pytest.mark.usefixtures("float64")


def network(arch="vgg5", timestep=3, size=8, **options):
    shape = {"num_classes": 4, "in_channels": 2, "image_size": size, "width": 0.1}
    return settle(archs.build(arch, timestep=timestep, **shape | options))


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
    ],
)
def test_every_neuron_here(neuron):
    assert_exact(network(**neuron), torch.randn(3, 2, 8, 8), torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
@pytest.mark.parametrize("labels", [(5,), (3, 5)])
def test_both_prefixes_and_labels_for_each_t(prefix, labels):
    x, y = torch.randn(5, 2, 8, 8), torch.randint(4, labels)
    assert_exact(network(), x, y, prefix=prefix, chunk=2)


def test_layers_in_a_loop_over_time():
    assert_exact(Loop().eval(), torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]), chunk=3)


def test_a_transformer_with_position_embedding_and_layer_scale():
    assert_exact(settle(Tokens()), torch.randn(5, 4, 2, 8), torch.arange(5) % 3, chunk=3)


def test_a_network_that_never_spikes():
    model = network(surrogate="rectangle", surrogate_alpha=1e3, threshold=100.0)
    assert_exact(model, torch.randn(3, 2, 8, 8), torch.arange(3))


def test_norms_through_gram_matrices_are_those_of_the_gradients(monkeypatch):
    model, x, y = network(size=16), torch.randn(3, 2, 16, 16), torch.arange(3)
    expected = one_by_one(model, x, y)
    for way in (True, False):
        monkeypatch.setattr("fisher.norms.pays", lambda uses, timesteps, way=way: way)
        assert_same(temporal_fisher(model, x, y), expected)
        loop, frames = Loop().eval(), torch.randn(3, 2, 6, 6)
        assert_same(temporal_fisher(loop, frames, y), one_by_one(loop, frames, y))


# -------------------------------------------------------------------- uses of a parameter


def layer_and(**others):
    return lambda: {"a": nn.Linear(5, 6), **{name: make() for name, make in others.items()}}


def six(*shape):
    return lambda: nn.Parameter(torch.rand(*shape, 6) + 0.5)


def number():
    return nn.Parameter(torch.tensor(0.7))


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


def gradient_within(m, x):
    h = m.a(x).flatten(0, 1).unsqueeze(1)
    (gradient,) = torch.autograd.grad(m.c(h).tanh().square().sum(), h, create_graph=True)
    return gradient.view(*x.shape[:2], 6)


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


def linear(*shape, **options):
    return lambda: nn.Linear(*shape, **options)


def conv(*shape):
    return lambda: nn.Conv1d(*shape, 3, padding=1)


# name: (function, layers, parameters that are measured by the definition)
USES = {
    "a number": (lambda m, x: m.a(x) * m.g, layer_and(g=number), ()),
    "added and divided": (lambda m, x: (m.a(x) - m.g) / m.h, layer_and(g=six(), h=six(1)), ()),
    "by time": (lambda m, x: m.a(x) * m.g, layer_and(g=six(4, 1)), ()),
    "a slice": (lambda m, x: m.a(x) + m.g[:4, None].exp(), layer_and(g=six(7)), ()),
    "learned neuron": (learned_neuron, layer_and(w=six(), threshold=six()), ()),
    "two kinds": (two_kinds, layer_and(b=linear(6, 6, bias=False)), ()),
    "of another's shape": (lambda m, x: m.a(x) * m.g.expand_as(m.h),
                           layer_and(g=six(), h=six(1)), ()),
    "masked": (lambda m, x: F.linear(x, m.a.weight * m.mask),
               layer_and(mask=lambda: nn.Parameter(torch.ones(6, 1), requires_grad=False)), ()),
    "in place": (lambda m, x: F.relu(m.a(x), inplace=True), layer_and(), ()),
    "recomputed": (recomputed, layer_and(c=conv(6, 6)), ()),
    "unused": (lambda m, x: m.a(x), layer_and(b=linear(5, 6)), ()),
    "gradient within": (gradient_within, layer_and(c=conv(1, 3)), ("c.weight",)),
    "tied": (lambda m, x: m.a(x).tanh() @ m.a.weight @ m.a.weight.T, layer_and(), ("a.weight",)),
    "mapped": (lambda m, x: torch.vmap(m.a)(x), layer_and(), ("a.weight", "a.bias")),
    "recurrent": (lambda m, x: m.b(m.a(x))[0], layer_and(b=lambda: nn.GRU(6, 6)),
                  ("b.weight_ih_l0", "b.weight_hh_l0", "b.bias_ih_l0", "b.bias_hh_l0")),
    "same for all": (same_for_all, layer_and(b=linear(4, 6)), ("b.weight", "b.bias")),
    "routed": (routed, layer_and(b=linear(5, 6)), ("b.weight", "b.bias")),
    "sorted": (sorted_by_content, layer_and(), ("a.weight", "a.bias")),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_a_parameter_may_be_used_otherwise(name):
    function, layers, slow = USES[name]
    model, x, y = Function(function, **layers()), torch.randn(9, 4, 5), torch.arange(9) % 3
    assert_exact(model, x, y, slow)


@pytest.mark.parametrize("name", ["routed", "sorted", "same for all"])
def test_rows_that_change_from_batch_to_batch_are_read_in_each(name):
    function, layers, _ = USES[name]
    model, x, y = Function(function, **layers()), torch.randn(9, 4, 5), torch.arange(9) % 3
    with warnings.catch_warnings(action="ignore"):
        assert_same(temporal_fisher(model, x, y, chunk=2), one_by_one(model, x, y))


def samples_first(layer, x):
    return layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def test_rows_of_a_layer_that_is_silent_at_first_are_read_when_it_is_not():
    def gated(m, x):
        return m.a(x) + (x[..., :1] > 0) * samples_first(m.b, x).tanh()

    x = torch.randn(32, 4, 5)
    x[:, :, 0] = x[:, :, 0].abs() * (torch.arange(32) >= 24)[:, None]
    assert_exact(Function(gated, **layer_and(b=linear(5, 6))()), x, torch.arange(32) % 3, chunk=8)


def test_samples_that_end_without_a_loss_have_their_rows():
    model = Function(lambda m, x: samples_first(m.a, x), **layer_and()())
    x = torch.randn(32, 4, 5)
    x[2:, -1] *= 1e7  # the last prediction is 0 or 1, and the label is the 1
    assert_exact(model, x, model(x).mean(0).argmax(1), chunk=8)


def test_the_number_of_samples_and_positions_may_change_between_batches():
    class Folded(nn.Linear):
        def forward(self, x):  # (N, T, positions, 5)
            z = super().forward(x.transpose(0, 1).flatten(0, 2))
            return z.view(4, len(x), -1, 3).sum(2)

    model = Folded(5, 3).eval()
    estimator = TemporalFisher(model)
    for samples, positions in ((8, 16), (16, 8), (32, 4)):
        x, y = torch.randn(samples, 4, positions, 5), torch.arange(samples) % 3
        assert_same(estimator(x, y), one_by_one(model, x, y))


class AttentionOverTime(nn.Module):
    """Every timestep sees all others, in samples that ask for it."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.r = (
            nn.Linear(5, 5),
            nn.Conv1d(1, 2, 3, padding=1),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        x = self.first(x.transpose(0, 1))
        z = self.conv(x.flatten(0, 1).unsqueeze(1)).mean(1).unflatten(0, x.shape[:2])
        asks = (x[0, :, :1] > 0.5).to(x.dtype)
        return self.r(z + asks * z.tanh().sum(0))


def test_prefixes_that_reach_later_timesteps_are_noticed_when_they_do():
    x, y = torch.randn(8, 4, 5), torch.arange(8) % 3
    model = AttentionOverTime().eval()
    order = model.first(x)[:, 0, 0].detach().argsort()  # the first batch asks for nothing
    assert_exact(model, x[order], y, chunk=2)


def test_skipped_parameters_are_left_out():
    function, layers, _ = USES["recurrent"]
    model, x, y = Function(function, **layers()), torch.randn(3, 4, 5), torch.arange(3)
    with warnings.catch_warnings(action="error"):
        norms = temporal_fisher(model, x, y, skip=("b.*",))
    assert list(norms) == ["r.weight", "r.bias", "a.weight", "a.bias"]
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
    model, sizes = Function(lambda m, x: m.a(x), a=nn.Linear(5, 6)), []

    def fail(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(fail)
    assert_exact(model, torch.randn(9, 4, 5), torch.arange(9) % 3, chunk=8)
    assert 8 in sizes and 4 in sizes


# -------------------------------------------------------------------- what is refused


def refused(model, words, x=None, y=None, **options):
    x = torch.randn(4, 4, 5) if x is None else x
    y = torch.arange(4) % 3 if y is None else y
    with pytest.raises(ValueError, match=words):
        temporal_fisher(model, x, y, **options)


MIXING = {
    "mean": lambda z: z - z.mean(1, keepdim=True),
    "scale": lambda z: z / z.detach().abs().amax(),
    "attention": lambda z: (z @ z.mT).softmax(2) @ z,
    "chance": lambda z: F.dropout(z, 0.01),
    "early exit": lambda z: z[: 2 + int((z.detach()[0].amax(1) > 0.7).sum())],
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_that_depend_on_each_other_or_on_chance_are_refused(name):
    model = Function(lambda m, x: MIXING[name](m.a(x)), a=nn.Linear(5, 6))
    refused(model, r"depend on the others|second model\(x\)|same T")


class KeepsItsMembrane(nn.Module):
    """Its membranes are those that the last call left; while it is silent, outputs do not tell."""

    def __init__(self, silent, detach):
        super().__init__()
        self.layer, self.readout, self.v = nn.Linear(5, 6), nn.Linear(6, 3), None
        self.threshold, self.detach = 100 * silent, detach

    def forward(self, x):
        v = 0 if self.v is None else self.v[: len(x)] / 2
        self.v = v + self.layer(x[:, 0])
        spikes = archs.neuron.Spike.apply(self.v - self.threshold, archs.LIF())
        self.v = self.v.detach() if self.detach else self.v
        return self.readout(spikes).unsqueeze(0)


@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("detach", [True, False])
def test_membranes_that_are_kept_are_refused(silent, detach):
    refused(KeepsItsMembrane(silent, detach).eval(), r"second model\(x\)")


def test_train_mode_is_refused_by_the_name_of_the_layer():
    model = network()
    model.bn1.train()
    refused(model, r"bn1 is in train mode: call model.eval\(\)", torch.randn(4, 2, 8, 8))


def test_gradients_that_autograd_grad_does_not_see_are_refused():
    def hidden(m, x):
        return checkpoint(m.a, x.requires_grad_(), use_reentrant=True)

    def later(m, x):
        return checkpoint(torch.tanh, m.a(x), use_reentrant=True)

    refused(Function(hidden, a=nn.Linear(5, 6)), "use_reentrant")
    refused(Function(later, a=nn.Linear(5, 6)), "use_reentrant")


def test_hooks_of_a_parameter_are_obeyed_or_refused():
    model = Function(lambda m, x: m.a(x), a=nn.Linear(5, 6))
    handle = model.a.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    x = torch.randn(4, 4, 5) * torch.tensor([0.01, 0.01, 10, 10]).view(-1, 1, 1)
    assert_exact(model, x, torch.arange(4) % 3, slow=("a.weight",))
    handle.remove()
    model.a.weight.register_post_accumulate_grad_hook(lambda p: p.data.add_(p.grad))
    before = model.a.weight.clone()
    refused(model, "a hook of a.weight")
    assert torch.equal(model.a.weight, before)


def test_arguments_and_outputs_of_another_form_are_refused_with_the_cure():
    model = Function(lambda m, x: m.a(x), a=nn.Linear(5, 6))
    pair = Readout(5, 3).eval()
    pair.forward = lambda x: (x[0], model(x))
    refused(pair, r"outputs\[1\]")
    refused(nn.Linear(5, 3).eval(), r"\[T, N, classes\]; it gives \[2, 3\]", torch.randn(4, 5))
    refused(Function(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(5, 6)), "changes x in place")
    refused(Function(lambda m, x: m.a(x.view(-1, 4, 5)), a=nn.Linear(5, 6)), "fails for 2 samples")
    refused(model, "samples first and has 6", torch.randn(6, 4, 5))
    refused(model, "whole numbers from 0", y=torch.tensor([0, 1, 2, -100]))
    refused(model, "label 3 is none of the model's 3 classes", y=torch.arange(4))
    refused(model, "chunk must be from 1 to 64, not -1", chunk=-1)
    refused(model, "unknown prefix 'all'", prefix="all")
    refused(model, "no parameter", skip=("*",))
    model.forward = torch.no_grad()(model.forward)
    refused(model, "no_grad")


# -------------------------------------------------------------------- models of other libraries


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_spikingjelly_with_parametric_neurons(dtype, tolerance):
    """In float32 its neurons are one operator, torch.ops.sj_plif."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    class Net(nn.Sequential):
        def forward(self, x):
            functional.reset_net(self)
            return super().forward(x.unsqueeze(0).repeat(3, 1, 1, 1, 1))

    net = Net(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.ParametricLIFNode(detach_reset=True),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(64, 4),
    )
    functional.set_step_mode(net, "m")
    net, x, y = settle(net.to(dtype)), torch.randn(5, 2, 8, 8).to(dtype), torch.arange(5) % 4
    with warnings.catch_warnings(action="error"):  # nothing is slow
        norms = temporal_fisher(net, x, y, chunk=3)
    assert_same(norms, one_by_one(net, x, y), tolerance)
    net.forward = lambda x: nn.Sequential.forward(net, x.unsqueeze(0).repeat(3, 1, 1, 1, 1))
    refused(net, r"second model\(x\)", x, y)


def test_snntorch_with_learned_time_constant_and_threshold():
    snntorch = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r = nn.Linear(5, 6), nn.Linear(6, 3)
            self.neuron = snntorch.Leaky(beta=0.8, learn_beta=True, learn_threshold=True)

        def forward(self, x):
            v, outputs = self.neuron.init_leaky(), []
            for _ in range(4):
                spikes, v = self.neuron(self.a(x), v)
                outputs.append(self.r(spikes.double()))
            return torch.stack(outputs)

    model, x, y = Net().double().eval(), 4 * torch.rand(5, 5), torch.arange(5) % 3
    norms = temporal_fisher(model, x, y)
    assert_same(norms, one_by_one(model, x, y), tolerance=1e-6)  # its surrogate is float32
    assert norms["neuron.beta"].sum() > 0 and norms["neuron.threshold"].sum() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arch", [*archs.ARCHS, "loop"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_cuda_agrees_with_the_definition(arch, dtype, tolerance):
    model = Loop().eval() if arch == "loop" else network(arch)
    size = 6 if arch == "loop" else 8
    model, x = model.to("cuda", dtype), torch.randn(3, 2, size, size).to("cuda", dtype)
    y = torch.arange(3, device="cuda")
    norms, expected = temporal_fisher(model, x, y, chunk=1), one_by_one(model, x, y)
    torch.testing.assert_close(sum(norms.values()), sum(expected.values()), rtol=tolerance, atol=0)
