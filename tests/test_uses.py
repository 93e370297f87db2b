"""Whatever a model does with a parameter, it is measured right: fast, or by the definition."""

import pytest
import torch
import torch.nn.functional as F
from models import Function, assert_exact, assert_same
from torch import nn
from torch.utils.checkpoint import checkpoint

from fisher import one_by_one, temporal_fisher

pytestmark = pytest.mark.usefixtures("float64")


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
    def block(v):
        return m.c(v.permute(1, 2, 0)).permute(2, 0, 1)

    return checkpoint(block, m.a(x).tanh(), use_reentrant=False)


def recomputed_numbers(m, x):
    def block(v):
        return torch.lerp(v, v.tanh(), m.g) * m.h

    return checkpoint(block, m.a(x), use_reentrant=False)


def hooked_output(m, x):
    z = m.a(x)
    z.register_hook(lambda gradient: gradient.clamp(-0.02, 0.02))
    return z


def hooked_number(m, x):
    """Its hook looks at values, so that torch.vmap has no rule."""
    g = m.g.sigmoid()
    g.register_hook(lambda gradient: gradient if gradient.abs() < 0.1 else gradient / 2)
    return m.a(x) * g


def lowered_threshold(m, x):
    threshold, spikes = m.g.clone(), []
    for x_t in m.a(x):
        spikes.append((x_t - threshold).relu())
        threshold *= 0.5
    return torch.stack(spikes)


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
        "a function of a number": (
            lambda m, x: torch.lerp(m.a(x), m.a(x).tanh(), m.g),
            {"g": parameter()},
            (),
        ),
        "a number twice": (
            lambda m, x: torch.addcmul(m.a(x), m.g, m.g),
            {"g": parameter()},
            (),
        ),
        "a number in place": (lambda m, x: m.a(x).mul_(m.g), {"g": parameter()}, ("g",)),
        "recomputed numbers": (recomputed_numbers, {"g": parameter(), "h": g}, ()),
        "hooked output": (hooked_output, {}, a),
        "hooked number": (hooked_number, {"g": parameter()}, ()),
        "lowered threshold": (lowered_threshold, {"g": parameter()}, ("g",)),
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


def test_a_hook_of_a_gradient_is_obeyed():
    model = Function(lambda m, x: m.a(x))
    model.a.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    x = torch.randn(4, 4, 5) * torch.tensor([0.01, 0.01, 10, 10]).view(-1, 1, 1)
    assert_exact(model, x, torch.arange(4) % 3, slow=["a.weight"])
