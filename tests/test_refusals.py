"""A model whose information has no meaning, or a wrong argument, is refused with the cure."""

import pytest
import torch
import torch.nn.functional as F
from models import Function, network
from torch import nn
from torch.utils.checkpoint import checkpoint

import archs
from fisher import measure, temporal_fisher

pytestmark = pytest.mark.usefixtures("float64")


def refused(model, words, x=None, y=None, **options):
    x = torch.randn(4, 4, 5) if x is None else x
    y = torch.arange(4) % 3 if y is None else y
    with pytest.raises(ValueError, match=words):
        temporal_fisher(model, x, y, **options)


MIXING = {
    "mean": lambda z: z - z.mean(1, keepdim=True),
    "attention": lambda z: (z @ z.mT).softmax(2) @ z,
    "chance": lambda z: F.dropout(z, 0.01),
    "early exit": lambda z: z[: 2 + int((z.detach()[0].amax(1) > 0.7).sum())],
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_that_depend_on_each_other_or_on_chance_are_refused(name):
    model = Function(lambda m, x: MIXING[name](m.a(x)))
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


def test_a_kept_membrane_that_only_later_samples_show_is_refused():
    def keep(m, x):
        z = m.a(x)
        before, m.v = getattr(m, "v", None), z.detach().mean(1, keepdim=True)
        late = torch.arange(z.shape[1]).view(-1, 1) >= 2
        return z if before is None else z + late * before

    refused(Function(keep), r"second model\(x\)")


def test_the_released_estimator_refuses_them_too():
    x, y = torch.randn(4, 4, 5), torch.arange(4) % 3
    hidden = Function(lambda m, x: checkpoint(m.a, x.requires_grad_(), use_reentrant=True))
    early = Function(lambda m, x: MIXING["early exit"](m.a(x)))
    for model, words in ((hidden, "use_reentrant=False"), (early, "same T")):
        with pytest.raises(ValueError, match=words):
            measure(model, zip(x.split(2), y.split(2)), estimator="release")


@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("detach", [True, False])
def test_membranes_that_are_kept_are_refused(silent, detach):
    refused(KeepsItsMembrane(silent, detach).eval(), r"second model\(x\)")


def test_train_mode_is_refused_by_the_name_of_the_layer():
    model = network()
    model.bn1.train()
    refused(model, r"bn1 is in train mode: call model.eval\(\)", torch.randn(4, 2, 8, 8))


class Recomputes(torch.autograd.Function):
    """A layer that recomputes itself in the backward pass, as reversible blocks do."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, d):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(d)
        return x.grad, None


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: Recomputes.apply(x.requires_grad_(), m.a),
        lambda m, x: checkpoint(m.a, x.requires_grad_(), use_reentrant=True),
        lambda m, x: checkpoint(torch.tanh, m.a(x), use_reentrant=True),
    ],
)
def test_gradients_that_autograd_grad_does_not_see_are_refused(function):
    model = Function(function)
    refused(model, "use_reentrant=False")
    assert model.a.weight.grad is None


def test_a_hook_that_would_take_a_step_in_the_backward_pass_is_refused():
    model = Function(lambda m, x: m.a(x))
    model.a.weight.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    refused(model, r"remove the hook of a\.weight", skip=("a.weight",))
    assert model.a.weight.any()


def test_arguments_and_outputs_of_another_form_are_refused_with_the_cure():
    """The test of `measure` has others."""
    model = Function(lambda m, x: m.a(x))
    refused(nn.Linear(5, 3).eval(), r"\[T, N, classes\]; it gives \[4, 3\]", torch.randn(4, 5))
    refused(Function(lambda m, x: m.a(x.mul_(2))), "leave x as it is")
    pair = Function(lambda m, x: m.a(x))
    pair.forward = lambda x: (x[0, 0], model(x))
    refused(pair, r"return only outputs \[T, N, classes\], for example outputs\[1\]")
    refused(
        Function(lambda m, x: m.a(x.view(4, 4, 5))),
        r"fails after one of 4 \(shape .*any batch size",
    )
    refused(model, r"x is samples first and has 6", torch.randn(6, 4, 5))
    refused(model, "chunk must be from 1 to 64, not -1", chunk=-1)
    refused(model, "unknown prefix 'all'", prefix="all")
    refused(model, "no parameter is left", skip=("*",))
    refused(model, r"skip pattern 'b\.\*' fits no parameter: a\.weight", skip=("a.*", "b.*"))
    steps = Function(lambda m, x: m.a(x))
    steps.forward = lambda x: list(model(x))
    refused(steps, r"for example torch\.stack\(outputs\)")
    model.forward = torch.no_grad()(model.forward)
    refused(model, "no_grad")
