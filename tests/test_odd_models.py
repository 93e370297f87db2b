"""The estimator on models of other people: exact whatever they do, fast where it can be, or refused aloud."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from models import Function, Loop, SamplesFirst, Steps, assert_exact_and_fast, assert_same, settle
from torch import nn
from torch.utils.checkpoint import checkpoint

import archs
import fisher
from fisher import TemporalFisher, one_by_one, temporal_fisher

pytestmark = pytest.mark.usefixtures("float64")


def test_a_loop_over_timesteps_with_a_reused_layer():
    assert_exact_and_fast(Loop(), torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]), chunk=3)
    assert_exact_and_fast(Loop(1), torch.randn(1, 2, 6, 6), torch.tensor([1]))


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
    assert len(caught) == 1 and caught[0].filename == __file__
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


def assigned(m, x):
    z = torch.zeros(*x.shape[:2], 6)
    z[:] = m.a.bias
    return z + m.a(x).tanh()


def gated(m, x):
    """Sample 3 alone makes the outputs depend on b and g."""
    z, h, gate = m.a(x), m.b(x) * m.g.exp(), (x > 3).any(-1, keepdim=True)
    return torch.where(gate, z + h, z) if gate.any() else z


def ordered(order):
    """The samples go through a layer in that order."""

    def function(m, x):
        index = order(x)
        return m.a(x[:, index]).tanh()[:, index.argsort()]

    return function


def chosen(m, x):
    """One expert takes the rows of sample 3 alone."""
    z, rows = m.a(x).tanh(), x[..., 0] > 3
    return z.index_put((rows,), z[rows] + m.n(m.b(x[rows])))


def inner(m, x):
    """The gradient of an energy."""
    h = m.a(x).flatten(0, 1).unsqueeze(1)
    (gradient,) = torch.autograd.grad(m.c(h).tanh().square().sum(), h, create_graph=True)
    return gradient.view(*x.shape[:2], 6)


def groups(m, x):
    """One weight convolves the features alone, and in two groups."""
    a, b = (F.conv1d(x.flatten(0, 1)[:, None, :4].expand(-1, g, -1), m.w, groups=g) for g in (1, 2))
    return torch.cat([a.sum(1), b.sum(1)], 1).unflatten(0, x.shape[:2])


def paired(m, x):
    """Samples n and n + N/2 go through a layer side by side."""
    half = x.shape[1] // 2
    z = x.unflatten(1, (2, half)).transpose(1, 2).flatten(1, 2) if half else x
    z = m.a(z).tanh()
    return z.unflatten(1, (half, 2)).transpose(1, 2).flatten(1, 2) if half else z


def traced():
    layer = nn.Linear(6, 6)
    return dict(
        a=nn.Linear(5, 6),
        b=layer,
        traced=torch.jit.trace(nn.Sequential(layer, nn.Tanh()), torch.ones(4, 2, 6)),
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
    "without rows at first": (chosen, lambda: dict(a=nn.Linear(5, 6), b=nn.Linear(5, 6), n=nn.LayerNorm(6))),
    "standardised weight": (lambda m, x: F.linear(x, F.batch_norm(m.a.weight[None], None, None, training=True)[0]),
                            lambda: dict(a=nn.Linear(5, 6, bias=False))),
    "differentiated within": (inner, lambda: dict(a=nn.Linear(5, 6), c=nn.Conv1d(1, 3, 3, padding=1))),
    "sparse": (lambda m, x: m.e((x[..., 0] > 0).long()), lambda: dict(e=nn.Embedding(2, 6, sparse=True))),
    "in two numbers of groups": (
        groups,
        lambda: dict(w=nn.Parameter(torch.randn(2, 1, 2)))),
    "in a linear layer and a LayerNorm": (
        lambda m, x: F.layer_norm(m.a(x)[..., None] * torch.ones(5), (6, 5), m.a.weight).mean(3),
        lambda: dict(a=nn.Linear(5, 6))),
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


def exchange(x):
    """The samples in their order, but for two that are marked."""
    index, marked = torch.arange(x.shape[1]), (x[1, :, 0].abs() > 5).nonzero().flatten()
    if len(marked) == 2:
        index[marked] = marked.flip(0)
    return index


def looks(m, x):
    return m.a(x) if x.sum() > 0 else m.a(x).tanh()


@pytest.mark.parametrize(
    "model, checked",
    [
        (
            lambda: archs.build(
                "vgg5", timestep=4, num_classes=3, in_channels=2, image_size=8, width=0.1
            ).eval(),
            4,
        ),
        (lambda: settle(SamplesFirst()), 4),
        (lambda: Function(lambda m, x: m.a(x), a=nn.Linear(5, 6)), 4),
        (lambda: Function(ordered(lambda x: x[1, :, 1].argsort()), a=nn.Linear(5, 6)), 8),
        (lambda: Function(looks, a=nn.Linear(5, 6)), 8),
        (
            lambda: Function(
                lambda m, x: torch.where(x[:1, :, :1] > 1, x.flip(1), x) @ m.a.weight.T,
                a=nn.Linear(5, 6),
            ),
            8,
        ),
        (lambda: Function(lambda m, x: m.b(m.traced(m.a(x))), **traced()), 8),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_whose_the_rows_are_is_checked_in_every_batch_where_content_can_decide(
    model, checked, monkeypatch
):
    model, calls, check = model(), [], fisher._last_signals
    monkeypatch.setattr(fisher, "_last_signals", lambda *args: calls.append(1) or check(*args))
    images = isinstance(model, archs.vgg.VGG)
    x = torch.randn(
        3, *((2, 8, 8) if images else (4, 2, 8) if isinstance(model, SamplesFirst) else (4, 5))
    )
    estimator = TemporalFisher(model)
    for _ in range(8):
        estimator(x, torch.arange(3))
    assert len(calls) == checked


@pytest.mark.parametrize("first", [0, 5])
def test_any_two_samples_that_are_exchanged_are_recognised(first):
    model, x = (
        Function(ordered(exchange), a=nn.Linear(5, 6)).eval(),
        torch.randn(16, 4, 5).clamp(-2, 2),
    )
    y = torch.arange(16) % 3
    for second in range(first + 1, 16):
        marked = x.clone()
        marked[[first, second], 1, 0] = 9.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(temporal_fisher(model, marked, y), one_by_one(model, marked, y))


class Cast(nn.Module):
    """To another precision."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


@pytest.mark.parametrize(
    "dtype, outputs, share",
    [
        (torch.float32,) * 2 + (1,),
        (torch.bfloat16,) * 2 + (1,),
        (torch.float32, torch.float16, 0.8),
    ],
)
def test_samples_that_are_exchanged_are_recognised_in_other_precisions(
    dtype, outputs, share, monkeypatch
):
    """Any two of 128; in float16, where there are few factors to tell them apart by, most."""
    monkeypatch.setattr(fisher, "one_by_one", lambda *args, **options: {})
    model, y = (
        Function(ordered(exchange), a=nn.Linear(5, 6)).eval().to(dtype),
        torch.arange(128) % 3,
    )
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
    signals, gradient = (
        6 * 4 * (19 * 64 + 6 + 3),
        2 * 64 * 64,
    )  # numbers that one sample needs room for
    assert TemporalFisher(model).probe(torch.randn(2, 4, 5), 8).bytes < 8.1 * (signals + gradient)


def test_memory_of_what_is_between_layers_counts():
    """Attention keeps a number for each two tokens."""

    def attention(m, x):
        tokens = x.transpose(0, 1)
        return ((tokens @ tokens.mT).softmax(-1) @ m.a(tokens)).transpose(0, 1)

    model = Function(attention, a=nn.Linear(5, 6)).eval()
    few, many = (
        TemporalFisher(model).probe(torch.randn(2, tokens, 5), 3).bytes for tokens in (100, 400)
    )
    assert 12 < many / few < 20 and many > 400**2 * 8


def test_a_complex_gradient_has_a_real_norm():
    weight = nn.Parameter(torch.randn(5, dtype=torch.complex128))
    model = Function(lambda m, x: m.b((x * m.w).abs()), w=weight, b=nn.Linear(5, 6)).eval()
    x, y = torch.randn(2, 3, 5), torch.tensor([0, 1])
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x[:1])[:, 0].mean(0), y[0]), weight)
    with pytest.warns(UserWarning, match="w"):
        found = temporal_fisher(model, x, y)["w"][2, 0]
    torch.testing.assert_close(found, (grad * grad.conj()).real.sum())


def test_chance_missing_labels_and_a_missing_graph_are_refused():
    model, x = (
        Function(lambda m, x: m.drop(m.a(x)), a=nn.Linear(5, 6), drop=nn.Dropout()),
        torch.randn(4, 2, 5),
    )
    with pytest.raises(ValueError, match=r"Dropout layer drop .*model\.eval\(\)"):
        temporal_fisher(model, x, torch.arange(4) % 3)
    for measure in (temporal_fisher, one_by_one):
        with pytest.raises(ValueError, match=r"4 samples need labels .* not \[2\]"):
            measure(model.eval(), x, torch.tensor([0, 1]))
    model.forward = torch.no_grad()(model.forward)
    with pytest.raises(ValueError, match="no_grad"):
        temporal_fisher(model, x, torch.arange(4) % 3)


def test_a_model_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        temporal_fisher(Steps().requires_grad_(False), torch.randn(2, 4, 5), torch.tensor([0, 1]))


def test_outputs_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"\[T, N, classes\].*\[3, 3\] for 3 samples"):
        temporal_fisher(nn.Linear(5, 3), torch.randn(2, 5), torch.tensor([0, 1]))


class KeepsItsMembrane(nn.Module):
    """Its membranes are those that the last call left."""

    def __init__(self):
        super().__init__()
        self.layer, self.v = nn.Linear(4, 3), 0.0

    def forward(self, x):
        self.v = self.v / 2 + self.layer(x).detach()
        return torch.stack([self.layer(x) + self.v, self.layer(x) - self.v])


def test_a_model_that_keeps_its_membranes_between_calls_is_refused():
    with pytest.raises(ValueError, match=r"second model\(x\)"):
        temporal_fisher(KeepsItsMembrane(), torch.randn(5, 4), torch.arange(5) % 3)


class SilentMembrane(nn.Module):
    """Its membranes are kept too, but its last layer is silent: outputs are the bias whatever they are."""

    def __init__(self, detach, head):
        super().__init__()
        self.layer, self.readout, self.detach, self.v = (
            nn.Linear(4, 6),
            nn.Linear(6, 3),
            detach,
            0.0,
        )
        self.head = head

    def forward(self, x):
        self.v = self.v.detach() if self.detach and torch.is_tensor(self.v) else self.v
        self.v = self.v / 2 + self.layer(x)
        spikes = archs.neuron.Spike.apply(self.v - 100, archs.LIF())
        return self.head(self.readout(spikes)).unsqueeze(0)


@pytest.mark.parametrize(
    "head", [nn.Identity(), nn.LogSoftmax(1), nn.Softmax(1)]
)  # of the last the sum is constant
@pytest.mark.parametrize("detach", [True, False])
def test_membranes_that_are_kept_are_noticed_while_nothing_spikes(detach, head):
    with pytest.raises(ValueError, match=r"second model\(x\)"):
        temporal_fisher(SilentMembrane(detach, head), torch.rand(5, 4), torch.arange(5) % 3)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda z: z - z.mean(1, keepdim=True),
        lambda z: z - z.mean(1, keepdim=True).detach(),
        lambda z: z / z.detach().abs().amax(),  # the largest of the batch may be of either sample
        lambda z: (z @ z.mT).softmax(2) @ z,
        lambda z: F.dropout(z, 0.01),
    ],
)
def test_samples_that_depend_on_each_other_or_on_chance_are_refused(mixing):
    model = Function(lambda m, x: mixing(m.a(x)), a=nn.Linear(5, 6)).eval()
    for order in (slice(None), [1, 0, 2, 3]):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=r"depend on the others|second model\(x\)"):
            temporal_fisher(model, torch.randn(4, 2, 5)[order], torch.arange(4) % 3)


def test_a_model_that_changes_its_input_is_refused_and_does_not():
    model, x = Function(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(5, 6)).eval(), torch.randn(4, 2, 5)
    before = x.clone()
    with pytest.raises(ValueError, match="changes x in place"):
        temporal_fisher(model, x, torch.arange(4) % 3)
    assert torch.equal(x, before)


def test_outputs_of_another_t_for_other_samples_are_a_dependence():
    model = Function(lambda m, x: m.a(x[: 1 + (x > 3).any()]), a=nn.Linear(5, 6)).eval()
    x = torch.randn(4, 2, 5).clamp(-2, 2)
    x[0, 0, 0] = 9
    with pytest.raises(ValueError, match="depend on the others"):
        temporal_fisher(model, x, torch.arange(4) % 3)


class Merges(nn.Linear):
    """Does more than to change its mode."""

    def train(self, mode=True):
        if not mode:
            self.weight.data.zero_()
        return super().train(mode)


def test_a_model_in_train_mode_is_measured_and_left_as_it_is_where_that_changes_nothing():
    model = Function(inner, a=Merges(5, 6), c=nn.Conv1d(1, 3, 3, padding=1))
    model.c.eval()
    x, y = torch.randn(4, 2, 5), torch.arange(4) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(temporal_fisher(model, x, y), one_by_one(model, x, y))
    assert [module.training for module in (model, model.a, model.c, model.r)] == [
        True,
        True,
        False,
        True,
    ]
    assert model.a.weight.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:measured one sample")
def test_outputs_that_are_not_numbers_are_not_taken_for_a_dependence():
    model = Function(lambda m, x: m.a(x) / 0, a=nn.Linear(5, 6)).eval()
    assert (
        temporal_fisher(model, torch.randn(4, 2, 5), torch.arange(4) % 3)["a.weight"].isnan().all()
    )


def test_rows_that_were_another_sample_s_once_are_not_trusted_again():
    """Not in the batches between those that are checked."""
    model, x, y = (
        Function(paired, a=nn.Linear(5, 6)).eval(),
        torch.randn(4, 2, 5),
        torch.arange(4) % 3,
    )
    estimator, expected = TemporalFisher(model), one_by_one(model, x, y)
    with pytest.warns(UserWarning, match=r"slow: a\.bias, a\.weight$") as caught:
        for _ in range(4):
            assert_same(estimator(x, y), expected)
    assert len(caught) == 1


def test_the_form_of_one_sample_s_outputs_is_looked_at_too():
    """With as many timesteps as classes a squeeze would go unseen."""
    model = Function(
        lambda m, x: (m.a(x) * m.g).squeeze(), a=nn.Linear(5, 6), g=nn.Parameter(torch.ones(6))
    ).eval()
    with pytest.raises(ValueError, match=r"gave \[3, 3\] for 1 samples"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        temporal_fisher(model, torch.randn(4, 3, 5), torch.arange(4) % 3)


@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_measured_as_it_is(dtype, around):
    class Net(Loop):
        def forward(self, x):
            with torch.autocast(
                "cpu", dtype, enabled=not around or torch.is_autocast_enabled("cpu")
            ):
                return super().forward(x).float()

    model, x, y = Net().float().eval(), torch.randn(3, 2, 6, 6).float(), torch.arange(3)
    with torch.autocast("cpu", dtype, enabled=around), warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = temporal_fisher(model, x, y), one_by_one(model, x, y)
    torch.testing.assert_close(sum(found.values()), sum(expected.values()), rtol=0.05, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_norms_of_half_precision_are_single(scale):
    """Their squares are past what it holds."""
    model, y = Function(lambda m, x: m.a(x), a=nn.Linear(5, 6)).eval(), torch.arange(4) % 3
    model.a.weight.data.zero_()
    model.a.bias.data.zero_()
    x = scale * torch.randn(4, 2, 5)
    expected = one_by_one(model, x, y)["a.weight"]
    assert expected.max() > 65504 or expected.max() < 6e-8
    for measure in (temporal_fisher, one_by_one):
        found = measure(model.half(), x.half(), y)["a.weight"]
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0)


@pytest.mark.filterwarnings("error")
def test_a_compiled_model_is_measured_as_it_was_written():
    def folded(layer):
        return lambda z: layer(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    model = Function(lambda m, x: folded(m.a)(x).tanh(), a=nn.Linear(5, 6)).eval()
    x, y = torch.randn(4, 2, 5), torch.arange(4) % 3
    expected = one_by_one(model, x, y)
    found = temporal_fisher(torch.compile(model, backend="eager"), x, y)
    assert_same({name.removeprefix("_orig_mod."): norms for name, norms in found.items()}, expected)


def test_arguments_of_another_form_are_refused_with_the_cure():
    model, x, y = Steps().eval(), torch.randn(3, 4, 5), torch.arange(3)
    for measure in (temporal_fisher, one_by_one):
        with pytest.raises(ValueError, match="labels are for 2 timesteps, the model has 4"):
            measure(model, x, y.expand(2, 3))
        with pytest.raises(ValueError, match="must be tensors, not Tensor and list"):
            measure(model, x, [0, 1, 2])
        with pytest.raises(
            ValueError, match="unknown prefix 'all': choose from cumulative, instant"
        ):
            measure(model, x, y, prefix="all")
        with torch.inference_mode():
            inside = x.clone()
            with pytest.raises(ValueError, match=r"use torch\.no_grad\(\)"):
                measure(model, x, y)
        with pytest.raises(ValueError, match=r"use torch\.no_grad\(\)"):
            measure(model, inside, y)
        with pytest.raises(ValueError, match=r"need labels .* not \[1, 1, 3\]"):
            measure(model, x, y.view(1, 1, 3))


def test_dropout_of_a_foreign_kind_in_train_mode_is_refused():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return F.dropout(self.layer(x), 0.01, training=self.training).unsqueeze(
                0
            )  # which rarely drops one

    torch.manual_seed(0)
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    with pytest.raises(ValueError, match="eval"):
        temporal_fisher(Random(), x, y)
    temporal_fisher(Random().eval(), x, y)
