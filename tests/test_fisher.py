"""The estimator: closed forms, the released model's numbers, and the batch-of-one loop over many kinds of model."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

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
    temporal_fisher,
)

GOLDEN = Path(__file__).parent / "golden"
LIF = archs.LIF


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settle(model):
    """Eval mode, with running statistics that are not the trivial ones."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.1, 0.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model.eval()


def assert_same(fast, slow, tolerance=1e-9):
    assert fast.keys() == slow.keys()
    for name in slow:
        assert fast[name].shape == slow[name].shape
        torch.testing.assert_close(fast[name], slow[name], rtol=tolerance, atol=tolerance * 1e-3, msg=name)
    assert sum(value.sum() for value in slow.values()) > 0


def assert_exact_and_fast(model, x, y, **options):
    """The same as one sample at a time, and not by way of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = temporal_fisher(model, x, y, **options)
    assert_same(fast, one_by_one(model, x, y))


class Steps(nn.Module):
    """A linear read-out of frames [N, T, features], without neurons."""

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(5, 3)

    def forward(self, x):
        return self.readout(x.transpose(0, 1))


def test_a_linear_softmax_layer_has_its_closed_form():
    model, x, y = Steps(), torch.randn(6, 4, 5), torch.randint(3, (6,))
    norms = temporal_fisher(model, x, y)
    for t in range(1, 5):
        p = model(x)[:t].mean(0).softmax(1)
        residual = (p - F.one_hot(y, 3)).square().sum(1)
        expected = residual * (x[:, :t].mean(1).square().sum(1) + 1)
        torch.testing.assert_close(norms["readout.weight"][t - 1] + norms["readout.bias"][t - 1], expected)


def test_resnet19_has_the_released_models_information():
    golden = np.load(GOLDEN / "resnet19.npz")
    model = archs.build("resnet19", timestep=int(golden["T"]), num_classes=10).eval()
    model.load_state_dict(golden_state(model.state_dict(), int(golden["seed"])))
    norms = temporal_fisher(model, torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"]))
    np.testing.assert_allclose(sum(norms.values()).numpy(), golden["fisher_per_sample"], rtol=1e-7)


@pytest.mark.parametrize("arch", archs.ARCHS)
@pytest.mark.parametrize("timestep, samples, frames", [(1, 2, False), (3, 1, True), (4, 3, False), (2, 3, True)])
def test_every_arch_agrees_with_one_sample_at_a_time(arch, timestep, samples, frames):
    model = settle(archs.build(arch, timestep=timestep, num_classes=4, in_channels=2, image_size=10, width=0.1))
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
    model = settle(archs.build("vgg5", timestep=3, num_classes=4, in_channels=1, image_size=8, width=0.1, **neuron))
    assert_exact_and_fast(model, torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3]))


def test_both_ways_to_a_norm_are_used_and_agree(monkeypatch):
    model = settle(archs.build("vgg5", timestep=3, num_classes=4, in_channels=2, image_size=16, width=0.2))
    x, y, used = torch.randn(3, 2, 16, 16), torch.arange(3), set()
    for name in ("_norm_by_gram", "_norm_by_gradient"):
        way = getattr(fisher, name)
        monkeypatch.setattr(fisher, name, lambda *args, name=name, way=way: used.add(name) or way(*args))
    chosen = temporal_fisher(model, x, y)
    assert used == {"_norm_by_gram", "_norm_by_gradient"}
    for pays in (True, False):
        monkeypatch.setattr(
            fisher, "_gram_pays", lambda uses, timestep, pays=pays: pays and bool(uses[0].call.weight_shape)
        )
        assert_same(temporal_fisher(model, x, y), chosen)


class Loop(nn.Module):
    """Written as most SNN code is: layers of torch in a loop over t, membranes as variables."""

    def __init__(self, timestep=3):
        super().__init__()
        self.timestep = timestep
        self.conv = nn.Conv2d(2, 4, 3, padding="same", groups=2)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, padding_mode="circular")
        self.norm = nn.GroupNorm(2, 6)
        self.mix = nn.Linear(6 * 2 * 2, 7)
        self.layer_norm = nn.LayerNorm(7)
        self.again = nn.Linear(7, 7)
        self.readout = nn.Linear(7, 3)

    def forward(self, x):
        v1 = v2 = 0
        outputs = []
        for _ in range(self.timestep):
            v1 = 0.5 * v1 + self.conv(x)
            s = torch.sigmoid(4 * (v1 - 0.5))
            s = torch.relu_(self.norm(self.down(s)))  # in place on what a noted layer gave
            v2 = 0.5 * v2 + self.layer_norm(self.mix(s.flatten(1)))
            outputs.append(self.readout(self.again(self.again(torch.tanh(v2)))))
        return torch.stack(outputs)


def test_a_loop_over_timesteps_with_a_reused_layer():
    assert_exact_and_fast(Loop(), torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]), chunk=3)
    assert_exact_and_fast(Loop(1), torch.randn(1, 2, 6, 6), torch.tensor([1]))


class SamplesFirst(nn.Module):
    """A transformer: time folded behind the samples [N T, ...], tokens in rows of linear layers, a 1-d convolution."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm1d(6)
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=b) for b in (True, False, True))
        self.layer_norm = nn.LayerNorm((4, 6))
        self.readout = nn.Linear(6, 3)

    def forward(self, x):  # (N, T, 2, 8)
        n, t = x.shape[:2]
        z = self.norm(self.embed(x.flatten(0, 1))).transpose(1, 2)  # (N T, 4, 6)
        z = self.layer_norm(z + (self.q(z) @ self.k(z).mT).softmax(2) @ self.v(z.flatten(0, 1)).view_as(z))
        return self.readout(z.mean(1)).view(n, t, 3).transpose(0, 1)


def test_time_folded_behind_the_samples_and_tokens_folded_into_rows():
    assert_exact_and_fast(settle(SamplesFirst()), torch.randn(3, 4, 2, 8), torch.tensor([0, 1, 2]))


class Odd(Steps):
    """Parameters used in ways that no rule covers, next to one that is covered."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3))
        self.tied = nn.Linear(3, 3)
        self.recurrent = nn.GRU(3, 3)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        z = self.frozen(super().forward(x)) * self.gain
        z = F.linear(self.tied(z), self.tied.weight.t())
        return self.recurrent(z)[0]


def test_what_no_rule_covers_is_exact_too_and_named_in_one_warning():
    model, x, y = Odd(), torch.randn(3, 4, 5), torch.tensor([0, 1, 2])
    with pytest.warns(UserWarning, match="one sample at a time") as caught:
        norms = temporal_fisher(model, x, y)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert all(name in message for name in ("gain", "tied.weight", "recurrent.weight_ih_l0"))
    assert all(name not in message for name in ("readout", "tied.bias", "unused", "frozen"))
    assert "frozen.weight" not in norms and norms["unused.weight"].abs().sum() == 0
    assert_same(norms, one_by_one(model, x, y))


class Masked(Steps):
    """A convolution whose weight is computed from a parameter, and a bias behind it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (1, 3))
        self.mask = (torch.rand(2, 1, 1, 3) > 0.4).double()

    def forward(self, x):
        z = F.conv2d(x.unsqueeze(1), self.conv.weight * self.mask, self.conv.bias)
        return self.readout(F.pad(z.mean(1), (1, 1)).transpose(0, 1))


def test_a_computed_weight_keeps_its_gradient():
    model, x, y = Masked(), torch.randn(3, 4, 5), torch.tensor([0, 1, 2])
    with pytest.warns(UserWarning, match=r"conv\.bias, conv\.weight"):
        norms = temporal_fisher(model, x, y)
    assert_same(norms, one_by_one(model, x, y))


class Function(nn.Module):
    """A model from a function of itself and its input [N, T, 5], with the layers it needs."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.r = function, nn.Linear(6, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.r(self.function(self, x.transpose(0, 1)))  # (T, N, 3)


def assigned(m, x):
    z = torch.zeros(*x.shape[:2], 6)
    z[:] = m.a.bias
    return z + m.a(x).tanh()


def gated(m, x):
    """Sample 3 alone makes the outputs depend on b and g."""
    z, h, gate = m.a(x), m.b(x) * m.g.exp(), (x > 3).any(-1, keepdim=True)
    return torch.where(gate, z + h, z) if gate.any() else z


class Cast(nn.Module):
    """To another precision."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def ordered(order):
    """The samples go through a layer in that order."""

    def function(m, x):
        index = order(x)
        return m.a(x[:, index]).tanh()[:, index.argsort()]

    return function


def exchange(x):
    """The samples in their order, but for two that are marked."""
    index, marked = torch.arange(x.shape[1]), (x[1, :, 0].abs() > 5).nonzero().flatten()
    if len(marked) == 2:
        index[marked] = marked.flip(0)
    return index


def chosen(m, x):
    """One expert takes the rows of sample 3 alone."""
    z, rows = m.a(x).tanh(), x[..., 0] > 3
    return z.index_put((rows,), z[rows] + m.b(x[rows]))


def inner(m, x):
    """The gradient of an energy."""
    h = m.a(x).flatten(0, 1).unsqueeze(1)
    (gradient,) = torch.autograd.grad(m.c(h).tanh().square().sum(), h, create_graph=True)
    return gradient.view(*x.shape[:2], 6)


def traced():
    layer = nn.Linear(6, 6)
    return dict(
        a=nn.Linear(5, 6), b=layer, traced=torch.jit.trace(nn.Sequential(layer, nn.Tanh()), torch.ones(4, 2, 6))
    )


def hooked():
    layer = nn.Linear(5, 6)
    layer.weight.register_hook(lambda grad: grad * 0.5)
    return dict(a=layer)


ODD = {
    "dead": (lambda m, x: torch.relu(m.a(x) - 100) + m.b(x), lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(5, 6))),
    "rows that all samples share": (lambda m, x: m.a(x) + m.p(torch.eye(4))[:2].sum(0),
                                    lambda: dict(a=nn.Linear(5, 6), p=nn.Linear(4, 6))),
    "tied, without a bias": (lambda m, x: torch.tanh(m.a(x) @ m.a.weight) @ m.a.weight.t(),
                             lambda: dict(a=nn.Linear(5, 6, bias=False))),
    "a number": (lambda m, x: m.a(x) * m.g, lambda: dict(a=nn.Linear(5, 6), g=nn.Parameter(torch.tensor(0.7)))),
    "assigned": (assigned, lambda: dict(a=nn.Linear(5, 6))),
    "used by some data only": (lambda m, x: m.a(x) * (m.g if (x > 3).any() else 1),
                               lambda: dict(a=nn.Linear(5, 6), g=nn.Parameter(torch.ones(6)))),
    "bias that is broadcast": (lambda m, x: F.linear(x, m.w, m.c),
                               lambda: dict(w=nn.Parameter(torch.randn(6, 5)), c=nn.Parameter(torch.zeros(1)))),
    "in TorchScript too": (lambda m, x: m.b(m.traced(m.a(x))), traced),
    "with a hook": (lambda m, x: m.a(x), hooked),
    "in pieces of the batch": (lambda m, x: torch.cat([m.a(part) for part in x.split(2, 1)], 1),
                               lambda: dict(a=nn.Linear(5, 6))),
    "recomputed": (lambda m, x: checkpoint(lambda v: m.c(v.permute(1, 2, 0)), m.a(x).tanh(), use_reentrant=False)
                   .permute(2, 0, 1), lambda: dict(a=nn.Linear(5, 6), c=nn.Conv1d(6, 6, 3, padding=1))),
    "mapped": (lambda m, x: torch.vmap(m.a)(x), lambda: dict(a=nn.Linear(5, 6))),
    "mapped convolution": (lambda m, x: torch.vmap(m.c)(m.a(x).unsqueeze(3).expand(-1, -1, -1, 3)).mean(3),
                           lambda: dict(a=nn.Linear(5, 6), c=nn.Conv1d(6, 6, 3, padding=1))),
    "normalised, then recomputed": (
        lambda m, x: checkpoint(lambda v: m.n(v.flatten(0, 1)).tanh().unflatten(0, v.shape[:2]), m.a(x),
                                use_reentrant=False), lambda: dict(a=nn.Linear(5, 6), n=nn.BatchNorm1d(6))),
    "changed in place": (lambda m, x: F.relu(m.a(x), inplace=True), lambda: dict(a=nn.Linear(5, 6))),
    "connected by some data only": (gated, lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(5, 6),
                                                        g=nn.Parameter(torch.ones(6)))),
    "in order of position": (ordered(lambda x: torch.cat([torch.arange(i, x.shape[1], 2) for i in (0, 1)])),
                             lambda: dict(a=nn.Linear(5, 6))),
    "in order of content": (ordered(lambda x: x[1, :, 1].argsort()), lambda: dict(a=nn.Linear(5, 6))),
    "in another order, silent at first": (
        lambda m, x: m.a(x) + torch.stack([m.b(v.flip(0)).flip(0) * torch.relu(v[:, :1] - 3) for v in x]),
        lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(5, 6))),
    "with a gradient of torch.func": (lambda m, x: m.a(x) + torch.func.grad(lambda v: m.b(v).tanh().sum())(m.a(x)),
                                      lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(6, 6))),
    "behind a sparse matrix": (
        lambda m, x: torch.sparse.mm(torch.eye(6).to_sparse(), m.a(x).flatten(0, 1).T).T.unflatten(0, x.shape[:2]),
        lambda: dict(a=nn.Linear(5, 6))),
    "without rows at first": (chosen, lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(5, 6))),
    "standardised weight": (lambda m, x: F.linear(x, F.batch_norm(m.a.weight[None], None, None, training=True)[0]),
                            lambda: dict(a=nn.Linear(5, 6, bias=False))),
    "differentiated within": (inner, lambda: dict(a=nn.Linear(5, 6), c=nn.Conv1d(1, 3, 3, padding=1))),
    "sparse": (lambda m, x: m.e((x[..., 0] > 0).long()), lambda: dict(e=nn.Embedding(2, 6, sparse=True))),
    "bias that is a number": (lambda m, x: F.linear(x, m.w, m.c),
                              lambda: dict(w=nn.Parameter(torch.randn(6, 5)), c=nn.Parameter(torch.tensor(0.5)))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("chunk", [2, None])
def test_odd_uses_of_a_layer_are_recognised(name, chunk):
    function, layers = ODD[name]
    model, x = Function(function, **layers()).eval(), torch.randn(5, 4, 5).clamp(-2, 2)
    x[3, 0, 0] = 9
    y = torch.arange(5) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(temporal_fisher(model, x, y, chunk=chunk), one_by_one(model, x, y))


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
def test_instant_prefixes_and_labels_of_their_own_for_each_t(prefix):
    model = settle(archs.build("vgg5", timestep=3, num_classes=4, in_channels=1, image_size=8, width=0.1))
    x, y = torch.randn(5, 1, 8, 8), torch.randint(4, (3, 5))
    found = temporal_fisher(model, x, y, prefix=prefix, chunk=2)
    assert_same(found, one_by_one(model, x, y, prefix=prefix))
    params = list(model.parameters())
    outputs = model(x[:1])[:, 0]
    chosen = outputs[2] if prefix == "instant" else outputs.mean(0)
    grads = torch.autograd.grad(F.cross_entropy(chosen, y[2, 0]), params)
    torch.testing.assert_close(sum(v[2, 0] for v in found.values()), sum(g.square().sum() for g in grads))


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
            for (name, _), grad in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters()))):
                torch.testing.assert_close(found[name][t - 1, batch], grad.square().sum())


def test_a_paired_difference_of_centroids_is_sharper_than_two_intervals():
    samples = torch.tensor([4.0, 2, 1]).view(3, 1) * torch.empty(3, 100).exponential_()
    later = samples * torch.tensor([1.0, 1, 1.5]).view(3, 1)
    low, high = centroid_interval(later, samples)
    assert low > 0 and high - low < 0.5 * (centroid_interval(later)[1] - centroid_interval(later)[0])


@pytest.mark.parametrize("arch", ["fc", "vgg5", "resnet20"])
def test_a_network_without_a_spike_or_gradient_is_exact_and_fast(arch):
    dead = dict(surrogate="rectangle", surrogate_alpha=1e3, threshold=100.0, width=0.1)
    model = settle(archs.build(arch, timestep=3, num_classes=4, in_channels=1, image_size=8, **dead))
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert_exact_and_fast(model, x, y)


def test_batch_statistics_are_refused_with_the_cure():
    model = archs.build("vgg5", timestep=2, num_classes=3, image_size=8, width=0.1)
    with pytest.raises(ValueError, match=r"bn1 .*model\.eval\(\)"):
        temporal_fisher(model, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize("first", [0, 5])
def test_any_two_samples_that_are_exchanged_are_recognised(first):
    model, x = Function(ordered(exchange), a=nn.Linear(5, 6)).eval(), torch.randn(16, 4, 5).clamp(-2, 2)
    y = torch.arange(16) % 3
    for second in range(first + 1, 16):
        marked = x.clone()
        marked[[first, second], 1, 0] = 9.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(temporal_fisher(model, marked, y), one_by_one(model, marked, y))


@pytest.mark.parametrize(
    "dtype, outputs, share",
    [(torch.float32,) * 2 + (1,), (torch.bfloat16,) * 2 + (1,), (torch.float32, torch.float16, 0.8)],
)
def test_samples_that_are_exchanged_are_recognised_in_other_precisions(dtype, outputs, share, monkeypatch):
    """Any two of 128; in float16, where there are few factors to tell them apart by, most."""
    monkeypatch.setattr(fisher, "one_by_one", lambda *args, **options: {})
    model, y = Function(ordered(exchange), a=nn.Linear(5, 6)).eval().to(dtype), torch.arange(128) % 3
    model.r = nn.Sequential(model.r, Cast(outputs))
    x = torch.randn(128, 4, 5).clamp(-2, 2).to(dtype)
    estimator, found = TemporalFisher(model), []
    assert estimator(x, y).keys() == estimator.params.keys()
    for second in range(1, 128):
        marked = x.clone()
        marked[[0, second], 1, 0] = 9.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append("a.weight" not in estimator(marked, y))
    assert sum(found) >= share * len(found)


def test_weights_do_not_count_for_each_sample():
    layers = [nn.Linear(5, 64), *(nn.Linear(64, 64) for _ in range(18)), nn.Linear(64, 6)]
    model = Function(lambda m, x: m.b(x), b=nn.Sequential(*layers)).eval()
    signals, gradient = 6 * 4 * (19 * 64 + 6 + 3), 2 * 64 * 64  # numbers that one sample needs room for
    assert TemporalFisher(model).probe(torch.randn(2, 4, 5), 8).bytes < 8.1 * (signals + gradient)


def test_a_complex_gradient_has_a_real_norm():
    weight = nn.Parameter(torch.randn(5, dtype=torch.complex128))
    model = Function(lambda m, x: m.b((x * m.w).abs()), w=weight, b=nn.Linear(5, 6)).eval()
    x, y = torch.randn(2, 3, 5), torch.tensor([0, 1])
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x[:1])[:, 0].mean(0), y[0]), weight)
    with pytest.warns(UserWarning, match="w"):
        found = temporal_fisher(model, x, y)["w"][2, 0]
    torch.testing.assert_close(found, (grad * grad.conj()).real.sum())


def test_memory_of_what_is_between_layers_counts():
    """Attention keeps a number for each two tokens."""

    def attention(m, x):
        tokens = x.transpose(0, 1)
        return ((tokens @ tokens.mT).softmax(-1) @ m.a(tokens)).transpose(0, 1)

    model = Function(attention, a=nn.Linear(5, 6)).eval()
    few, many = (TemporalFisher(model).probe(torch.randn(2, tokens, 5), 3).bytes for tokens in (100, 400))
    assert 12 < many / few < 20 and many > 400**2 * 8


def test_chance_missing_labels_and_a_missing_graph_are_refused():
    model, x = Function(lambda m, x: m.drop(m.a(x)), a=nn.Linear(5, 6), drop=nn.Dropout()), torch.randn(4, 2, 5)
    with pytest.raises(ValueError, match=r"Dropout layer drop .*model\.eval\(\)"):
        temporal_fisher(model, x, torch.arange(4) % 3)
    for measure in (temporal_fisher, one_by_one):
        with pytest.raises(ValueError, match=r"4 samples need labels .* not \[2\]"):
            measure(model.eval(), x, torch.tensor([0, 1]))
    model.forward = torch.no_grad()(model.forward)
    with pytest.raises(ValueError, match="no_grad"):
        temporal_fisher(model, x, torch.arange(4) % 3)


def test_outputs_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"\[T, N, classes\].*\[3, 3\] for 3 samples"):
        temporal_fisher(nn.Linear(5, 3), torch.randn(2, 5), torch.tensor([0, 1]))


def test_model_and_random_state_are_left_as_they_were():
    model = settle(archs.build("vgg5", timestep=2, num_classes=3, image_size=8, width=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        temporal_fisher(
            model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
        )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training


def test_float32_is_near_float64():
    model = settle(archs.build("vgg9", timestep=4, num_classes=4, in_channels=1, image_size=16, width=0.2))
    x, y = torch.randn(6, 1, 16, 16), torch.randint(4, (6,))
    single = model.float()
    assert_same(temporal_fisher(single, x.float(), y), one_by_one(single, x.float(), y), tolerance=1e-3)


def network(arch="vgg5", **options):
    return settle(archs.build(arch, timestep=3, num_classes=4, in_channels=2, image_size=12, width=0.2, **options))


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
    assert seen == [["ieee", "ieee"], before] and [kind.fp32_precision for kind in settings] == before


class TF32(TorchDispatchMode):
    """Convolutions round as a GPU's do by default: what they multiply, to 10 bits behind the point."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = {"aten::convolution": 2, "aten::convolution_backward": 3}.get(func._schema.name, 0)
        args = [*map(self.rounded, args[:tensors]), *args[tensors:]]
        return func(*args, **(kwargs or {}))

    def rounded(self, operand):
        return ((operand.clone().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_the_rounding_of_tf32_is_not_taken_for_rows_of_other_samples():
    model, x, y = network("resnet19").float(), torch.randn(20, 2, 12, 12).float(), torch.arange(20) % 4
    estimator = TemporalFisher(model)
    estimator.probe(x, len(x))  # which forbids it
    with TF32(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(estimator(x, y), one_by_one(model, x, y), tolerance=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CUDA)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_cuda_agrees_with_one_sample_at_a_time(name, dtype, tolerance):
    model, shape = CUDA[name]()
    model, x, y = model.to("cuda", dtype), torch.randn(3, *shape).to("cuda", dtype), torch.arange(3, device="cuda")
    with fisher._full_precision():
        found, expected = (sum(way(model, x, y).values()) for way in (temporal_fisher, one_by_one))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


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
    inside = [low <= truth <= high for low, high in (centroid_interval(s, draws=400) for s in samples)]
    assert 0.88 <= sum(inside) / len(inside) <= 0.99
    assert centroid_interval(samples[0]) == centroid_interval(samples[0])
