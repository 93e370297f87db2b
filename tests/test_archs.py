"""The networks: agreement with the released model, shapes, locality of state."""

import copy
import os
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state
from torch import nn

import archs
from archs.layers import BatchNorm
from archs.neuron import LIF, PEAK_ONE_ALPHA, SURROGATES
from utils import after_each

GOLDEN = Path(__file__).parent / "golden"
LIF_CASES = sorted(
    name[: -len("/spikes")]
    for name in np.load(GOLDEN / "lif.npz").files
    if name.endswith("/spikes")
)
SMALL = dict(timestep=3, num_classes=4, in_channels=2, image_size=8, width=0.1)


def lif_of(case):
    value = dict(part.split("=") for part in case.split(","))
    tau = {"1.3333": 4 / 3}.get(value["tau"], float(value["tau"]))  # the name rounds it
    flags = {name: value[name] == "True" for name in ("decay_input", "detach_reset")}
    return LIF(tau=tau, reset=value["reset"], **flags)


@pytest.mark.parametrize("case", LIF_CASES)
def test_lif_spikes_membranes_and_gradients_are_the_released_ones(case):
    golden = np.load(GOLDEN / "lif.npz")
    lif, x = lif_of(case), torch.from_numpy(golden["x"]).requires_grad_()
    spikes = lif(x)
    (grad,) = torch.autograd.grad(spikes, x, torch.from_numpy(golden["grad_out"]))
    assert np.array_equal(spikes.detach().numpy(), golden[case + "/spikes"])
    np.testing.assert_allclose(grad.numpy(), golden[case + "/grad_x"], rtol=0, atol=1e-9)
    v = torch.zeros(x.shape[1], dtype=x.dtype)
    for t, x_t in enumerate(x):
        _, v = lif.step(v, x_t)
        np.testing.assert_allclose(v.detach().numpy(), golden[case + "/v"][t], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def resnet19():
    golden = np.load(GOLDEN / "resnet19.npz")
    model = archs.build("resnet19", timestep=int(golden["T"]), num_classes=10).double()
    model.load_state_dict(golden_state(model.state_dict(), int(golden["seed"])))
    return model, golden, torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])


def test_resnet19_has_the_released_names_and_shapes():
    state = archs.build("resnet19", timestep=1, num_classes=10).state_dict()
    shapes = [
        word
        for name, value in state.items()
        for word in (name, "x".join(map(str, value.shape)) or "scalar")
    ]
    assert shapes == (GOLDEN / "resnet19_state_dict.txt").read_text().split()
    assert (
        sum(p.numel() for p in archs.build("resnet19", timestep=1, num_classes=10).parameters())
        == 26_108_042
    )


def test_resnet19_logits_gradients_and_running_statistics_are_the_released_ones(resnet19):
    model, golden, x, y = resnet19
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(x).numpy(), golden["logits_eval"], rtol=1e-7)
    model.train()
    outputs = model(x)
    loss = F.cross_entropy(outputs.mean(0), y)
    loss.backward()
    np.testing.assert_allclose(outputs.detach().numpy(), golden["logits_train"], rtol=1e-7)
    np.testing.assert_allclose(loss.item(), golden["loss_train"], rtol=1e-7)
    parameters, state = dict(model.named_parameters()), model.state_dict()
    assert sorted(parameters) == sorted(golden["grad_names"])
    norms = [parameters[name].grad.norm().item() for name in golden["grad_names"]]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-7)
    statistics = [name for name in golden.files if name.startswith("bn:")]
    assert len(statistics) == 6
    for name in statistics:
        np.testing.assert_allclose(state[name[3:]].numpy(), golden[name], rtol=1e-7)


@pytest.mark.parametrize("arch", archs.ARCHS)
@pytest.mark.parametrize("size", [8, 13, (9, 20)])
def test_every_arch_takes_any_size_of_images_and_frames(arch, size):
    model = archs.build(arch, **{**SMALL, "image_size": size})
    shape = (size, size) if isinstance(size, int) else size
    assert model(torch.randn(2, 2, *shape)).shape == (3, 2, 4)
    assert model(torch.randn(2, 3, 2, *shape)).shape == (3, 2, 4)


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_state_is_local_to_the_call_and_frames_of_one_image_are_that_image(arch):
    model = archs.build(arch, **SMALL).double().eval()
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    first = model(x)
    assert torch.equal(first, model(x))
    torch.testing.assert_close(model(x.unsqueeze(1).repeat(1, 3, 1, 1, 1)), first)
    alone = torch.cat([model(x[n : n + 1]) for n in range(2)], 1)
    torch.testing.assert_close(alone, first)


@pytest.mark.parametrize("name", ["vgg5", "vgg9", "vgg11", "vgg16", "resnet18", "resnet20"])
def test_the_number_in_a_name_counts_the_layers_with_weights(name):
    matrices = [
        n
        for n, p in archs.build(name, **SMALL).named_parameters()
        if p.dim() > 1 and "shortcut" not in n
    ]
    assert len(matrices) == int(name.lstrip("vgresnt"))


def test_width_scales_channels_and_layernum_the_depth():
    assert archs.build("vgg5", **{**SMALL, "width": 0.25}).conv1.out_channels == 16
    deep = archs.build("fc", **SMALL, layernum=5)
    assert sum(isinstance(layer, nn.Linear) for layer in deep) == 5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", ["step", "folded"])
def test_batchnorm_is_the_loop_over_timesteps_or_the_fold(norm, layout):
    x = (
        torch.randn(12, 2, 5, 5, dtype=torch.float64)
        .to(memory_format=layout)
        .unflatten(0, (3, 4))
        .requires_grad_()
    )
    cotangent = torch.randn_like(x)
    layer, twin = BatchNorm(2, norm).double(), nn.BatchNorm2d(2).double()
    for module in (layer, twin):
        module.weight.data, module.bias.data = torch.tensor(
            [[0.5, 2.0], [-1.0, 3.0]], dtype=torch.float64
        )
    out = layer(x)
    expected = (
        torch.stack([twin(x_t) for x_t in x])
        if norm == "step"
        else twin(x.flatten(0, 1)).view_as(x)
    )
    torch.testing.assert_close(out, expected)
    assert out.stride() == x.stride()
    found = torch.autograd.grad(out, [x, *layer.parameters()], cotangent)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, [x, *twin.parameters()], cotangent)
    )
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    assert layer.num_batches_tracked == (3 if norm == "step" else 1)
    torch.testing.assert_close(layer.eval()(x), twin.eval()(x.flatten(0, 1)).view_as(x))


def test_statistics_of_one_value_are_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(2)(torch.randn(3, 1, 2))


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_surrogates_integrate_to_one_and_peak_at_one_by_default(name, alpha):
    u = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    derivative = SURROGATES[name](u.clone(), alpha or PEAK_ONE_ALPHA[name])
    assert torch.trapezoid(derivative, u).item() == pytest.approx(1, abs=1e-3)
    assert alpha is not None or derivative.max().item() == pytest.approx(1)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_their_formulas(name):
    alpha, u = 1.7, torch.linspace(-3, 3, 101, dtype=torch.float64)
    formula = {
        "atan": (alpha / 2) / (1 + (np.pi / 2 * alpha * u) ** 2),
        "sigmoid": alpha * torch.sigmoid(alpha * u) * torch.sigmoid(-alpha * u),
        "rectangle": alpha * (u.abs() < 0.5 / alpha).double(),
        "triangle": alpha * (1 - alpha * u.abs()).clamp(min=0),
    }[name]
    torch.testing.assert_close(SURROGATES[name](u.clone(), alpha), formula)


@pytest.mark.parametrize(
    "options", list(product(*[(False, True)] * 3, ["hard", "soft"], SURROGATES))
)
@pytest.mark.parametrize("static", [False, True])
def test_all_steps_at_once_are_the_loop(options, static):
    names = ("decay_input", "detach_reset", "detach_membrane", "reset", "surrogate")
    lif = LIF(tau=1.7, threshold=0.8, **dict(zip(names, options)))
    x = (2 * torch.randn(1 if static else 5, 2, 3, 4, dtype=torch.float64)).requires_grad_()
    loop, fast = lif.loop(x.expand(5, -1, -1, -1)), lif(x.expand(5, -1, -1, -1))
    assert torch.equal(loop, fast)
    assert torch.equal(lif(x.detach().expand(5, -1, -1, -1)), fast)
    for live in (5, 3, 0):  # steps with a gradient
        cotangent = torch.cat([torch.randn(live, 2, 3, 4), torch.zeros(5 - live, 2, 3, 4)]).double()
        expected, grad = (
            torch.autograd.grad(s, x, cotangent, retain_graph=True)[0] for s in (loop, fast)
        )
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arch", ["resnet20", "vgg5", "fc"])
@pytest.mark.parametrize("norm", ["step", "folded"])
def test_activations_that_are_computed_again_change_nothing(arch, norm, monkeypatch):
    monkeypatch.setattr(archs.layers, "MANY_CHANNELS", 1)
    found = []
    for again, layout in product(
        (None, False, True), (torch.contiguous_format, torch.channels_last)
    ):
        torch.manual_seed(0)
        shape = dict(timestep=3, num_classes=4, image_size=8, width=0.1, norm=norm, threshold=0.3)
        model = (
            archs.build(arch, **shape, checkpoint_activations=again)
            .double()
            .to(memory_format=layout)
        )
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        outputs = model(x)
        outputs.square().sum().backward()
        assert all(
            p.grad.stride() == p.stride() for p in model.parameters()
        )  # as a fused optimizer needs
        found.append([outputs, *(p.grad for p in model.parameters()), *model.buffers()])
    for one, *others in zip(*found):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", ["resnet20", "vgg5"])
@pytest.mark.parametrize("norm", ["step", "folded"])
def test_the_gradient_of_one_sample_is_the_same_in_any_memory_format(arch, norm):
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = archs.build(
            arch, timestep=3, num_classes=4, image_size=8, width=0.1, norm=norm, threshold=0.3
        )
        model = model.double().to(memory_format=layout).eval()
        outputs = model(torch.rand(1, 3, 8, 8, dtype=torch.float64))
        found.append(torch.autograd.grad(outputs.square().sum(), list(model.parameters())))
    for one, other in zip(*found):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_step_is_differentiated_twice_and_with_frozen_batchnorm(frozen, monkeypatch):
    monkeypatch.setattr(archs.layers, "MANY_CHANNELS", 1)
    found = []
    for again in (None, False):
        torch.manual_seed(0)
        model = archs.build("vgg5", **SMALL, checkpoint_activations=again).double().train()
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.train(not frozen)
        loss = model(torch.rand(4, 2, 8, 8, dtype=torch.float64)).square().sum()
        for _ in range(2):
            found.append(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
    for first, *others in zip(*found):
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("again", [False, True])
def test_a_loss_is_differentiated_after_a_change_of_mode(again, monkeypatch):
    monkeypatch.setattr(archs.layers, "MANY_CHANNELS", 1)
    found = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        model = archs.build("resnet20", **SMALL, checkpoint_activations=again).double().train()
        x = torch.rand(4, 2, 8, 8, dtype=torch.float64)
        loss = model(x).square().sum()
        if evaluated:
            model.eval()(x)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
        assert all(module.training != evaluated for module in model.modules())
    for one, other in zip(*found):
        assert torch.equal(one, other)


def test_frames_keep_their_sample_and_their_timestep():
    x = torch.rand(2, 3, 1, 4, 5)
    assert torch.equal(archs.layers.time_first(x, 3), torch.stack([x[:, t] for t in range(3)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "neuron", [{}, {"detach_reset": False}, {"reset": "soft", "detach_reset": False}]
)
@pytest.mark.parametrize("static", [False, True])
def test_neurons_taken_in_parts_are_the_same_to_the_bit(dtype, neuron, static, monkeypatch):
    lif, found = archs.LIF(**neuron), []
    x = 2 * torch.randn(12, 2, 3, 5, dtype=dtype)
    x = (
        x.contiguous(memory_format=torch.channels_last).expand(3, *x.shape)
        if static
        else torch.stack([x, x.flip(0), -x])
    )
    x = x.requires_grad_()
    for piece, parts in ((10**6, 1), (100, 4), (1, 12)):
        monkeypatch.setattr(archs.neuron, "PIECE", piece)
        assert len(list(archs.neuron.pieces(x, None))) == parts
        spikes = lif(x)
        found.append(
            (
                spikes,
                *torch.autograd.grad(
                    spikes, x, torch.arange(float(x.numel())).view(x.shape).to(dtype)
                ),
            )
        )
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("static", [False, True])
def test_compiled_neurons_are_the_neurons_in_any_memory_format(static):
    compiled, lif = LIF(), LIF()
    compiled.compile()
    steps, channels = (1, 3) if static else (4, 4)  # neurons: 180, and 240 = 15 * ALIGNED
    x = torch.randn(steps, 6, channels, 2, 5, dtype=torch.float64).mul(2)
    for x_ in (
        x,
        x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2]),
    ):
        results = []
        for neurons in (compiled, lif):
            leaf = x_.clone().requires_grad_()
            spikes = neurons(leaf.expand(4, *x.shape[1:]))
            spikes.mul(torch.arange(spikes.numel()).view(spikes.shape)).sum().backward()
            results.append((spikes, leaf.grad))
        assert results[0][0].stride() == results[1][0].stride()
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("again", [False, True])
def test_other_weights_for_one_call_have_their_own_gradient(again, monkeypatch):
    monkeypatch.setattr(archs.layers, "MANY_CHANNELS", 1)
    torch.manual_seed(0)
    model = archs.build("resnet20", **SMALL, checkpoint_activations=again).double().train()
    kept, x = copy.deepcopy(model), torch.rand(4, 2, 8, 8, dtype=torch.float64)
    kept.checkpoint_activations, found = None, []
    for network in (model, kept):
        weights = {
            name: (p.detach() * 1.3 + 0.01).requires_grad_()
            for name, p in network.named_parameters()
        }
        outputs = torch.func.functional_call(network, weights, (x,))
        found.append(torch.autograd.grad(outputs.square().sum(), list(weights.values())))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch, again", [("resnet20", True), ("vgg5", False)])
def test_a_training_step_is_traced_as_one_graph(arch, again):
    torch.manual_seed(0)
    model = (
        archs.build(arch, **SMALL, checkpoint_activations=again)
        .double()
        .to(memory_format=torch.channels_last)
    )
    x = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    found = []
    for network in (
        model,
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager"),
    ):
        outputs = network(x)
        found.append(
            [outputs, *torch.autograd.grad(outputs.square().sum(), list(network.parameters()))]
        )
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_copy_of_compiled_neurons_is_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    lif = LIF()
    lif.compile()
    copied, x = copy.deepcopy(lif), torch.rand(4, 3, 5) * 4
    copied.threshold = 0.5
    assert torch.equal(copied(x), LIF(threshold=0.5)(x)) and not torch.equal(copied(x), lif(x))


@pytest.mark.parametrize(
    "options", [dict(), dict(reset="soft"), dict(detach_reset=False), dict(decay_input=False)]
)
def test_half_precision_has_the_spikes_of_single_precision_and_its_gradient_but_for_rounding(
    options,
):
    lif, x = LIF(**options), torch.randn(6, 5, 40).mul(2).bfloat16()
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    spikes, expected = lif(half), lif.loop(single)
    assert spikes.dtype == torch.bfloat16 and torch.equal(spikes.float(), expected)
    cotangent = torch.randn(6, 5, 40).bfloat16()
    (found,) = torch.autograd.grad(spikes, half, cotangent)
    (wanted,) = torch.autograd.grad(expected, single, cotangent.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)


def test_without_the_membranes_a_timestep_has_the_gradient_of_its_own_input_alone():
    x = torch.full((3, 2), 0.9, dtype=torch.float64, requires_grad=True)
    (carried,) = torch.autograd.grad(LIF()(x)[2].sum(), x)
    (own,) = torch.autograd.grad(LIF(detach_membrane=True)(x)[2].sum(), x)
    assert (carried > 0).all() and not own[:2].any() and torch.equal(own[2], carried[2])


def test_the_gradient_of_a_spike_is_the_surrogate():
    x = torch.tensor([[0.3], [2.5]], dtype=torch.float64, requires_grad=True)
    lif = LIF(tau=2.0, threshold=0.7, surrogate="triangle", surrogate_alpha=0.5)
    (grad,) = torch.autograd.grad(lif(x)[0].sum(), x)
    assert grad[0].item() == pytest.approx(
        SURROGATES["triangle"](torch.tensor(0.15 - 0.7), 0.5).item() / 2
    )
    assert grad[1].item() == 0


@pytest.mark.parametrize(
    "wrong",
    [dict(arch="vgg7"), dict(timestep=0), dict(image_size=7), dict(tau=1.0), dict(surrogate="step"), dict(reset="no"),
     dict(norm="layer"), dict(threshold=0), dict(layernum=1, arch="fc"), dict(surrogate_alpha=-1)],
)  # fmt: skip
def test_build_refuses_what_it_cannot_make(wrong):
    with pytest.raises(ValueError):
        archs.build(**{"arch": "vgg5", **SMALL, **wrong})


def test_frames_of_another_length_are_refused():
    model = archs.build("fc", **SMALL)
    with pytest.raises(ValueError, match="3 timesteps, the frames have 4"):
        model(torch.zeros(1, 4, 2, 8, 8))
    with pytest.raises(ValueError, match="images"):
        model(torch.zeros(2, 8, 8))


PARAMETERS = {"fc": 789_514, "vgg5": 2_323_786, "vgg9": 3_839_946, "vgg11": 9_754_698, "vgg16": 15_250_378,
              "resnet18": 11_173_962, "resnet20": 272_474, "resnet19": 26_108_042}  # fmt: skip


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_a_network_has_the_weights_of_its_plan(arch):
    with torch.device("meta"):
        model = archs.build(arch, timestep=1, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch, rows", [("resnet18", [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4),
                                        ("resnet20", [32] * 7 + [16] * 6 + [8] * 6)])  # fmt: skip
def test_the_first_block_of_a_stage_halves_the_image(arch, rows):
    found, model = [], archs.build(arch, timestep=1, num_classes=10, width=0.05)
    with after_each(
        model, archs.LIF, lambda name, module, x, spikes: found.append(spikes.shape[3])
    ):
        model(torch.zeros(2, 3, 32, 32))
    assert found == rows


def test_a_pooling_is_left_out_where_it_would_find_less_than_2x2_positions():
    for arch, size, features in (
        ("vgg9", 8, 256),
        ("vgg16", 8, 512),
        ("vgg9", (16, 31), 256 * 2 * 3),
    ):
        model = archs.build(arch, timestep=1, num_classes=10, image_size=size)
        assert model.fc1.in_features == features
