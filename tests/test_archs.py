"""The networks: neurons and ResNet19 of the release, what a layer computes, any size of input."""

import math
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

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"timestep": 3, "num_classes": 4, "in_channels": 2, "image_size": 8, "width": 0.1}
VARIANTS = list(product(["hard", "soft"], [False, True], [False, True]))

pytestmark = pytest.mark.usefixtures("float64")


def small(arch, **options):
    """A small network that spikes; the same options give the same weights."""
    torch.manual_seed(0)
    return archs.build(arch, **{**SMALL, "threshold": 0.3, **options})


def spikes_and_gradient(layer, x, cotangent):
    """Spikes of x, and the gradient by x of their sum weighted with the cotangent."""
    x = x.detach().requires_grad_()
    spikes = layer(x)
    return spikes, torch.autograd.grad(spikes, x, cotangent)[0]


def outputs_and_gradients(model, x):
    """Outputs of a network, and the gradients of a loss by its parameters."""
    outputs = model(x)
    return outputs, torch.autograd.grad(outputs.square().sum(), list(model.parameters()))


@pytest.mark.parametrize("tau, name", [(2, "2.0000"), (4 / 3, "1.3333"), (8, "8.0000")])
@pytest.mark.parametrize("reset, decay_input, detach_reset", VARIANTS)
def test_neurons_are_the_released_ones(tau, name, reset, decay_input, detach_reset):
    golden = np.load(GOLDEN / "lif.npz")
    case = f"tau={name},reset={reset},decay_input={decay_input},detach_reset={detach_reset}"
    lif = LIF(tau=tau, reset=reset, decay_input=decay_input, detach_reset=detach_reset)
    x = torch.from_numpy(golden["x"])
    spikes, gradient = spikes_and_gradient(lif, x, torch.from_numpy(golden["grad_out"]))
    assert np.array_equal(spikes.detach(), golden[f"{case}/spikes"])
    np.testing.assert_allclose(gradient, golden[f"{case}/grad_x"], rtol=0, atol=1e-9)
    v = torch.zeros_like(x[0])
    for x_t, golden_v in zip(x, golden[f"{case}/v"]):
        _, v = lif.step(v, x_t)
        np.testing.assert_allclose(v, golden_v, rtol=0, atol=1e-9)


def test_a_neuron_of_infinite_tau_integrates_its_input_without_decay():
    x = torch.tensor([0.25, 0.5, 0.25, 0.75, 0.125]).view(5, 1)
    spikes = LIF(tau=math.inf)(x)  # membranes 0.25, 0.75, 1 -> 0, 0.75, 0.875
    assert spikes.flatten().tolist() == [0, 0, 1, 0, 0]
    assert torch.equal(LIF(tau=math.inf).loop(x), spikes)


def test_resnet19_has_the_released_names_and_shapes():
    with torch.device("meta"):
        model = archs.build("resnet19", timestep=1, num_classes=10)
    lines = (GOLDEN / "resnet19_state_dict.txt").read_text().splitlines()
    for line, (name, value) in zip(lines, model.state_dict().items(), strict=True):
        assert line == f"{name} {'x'.join(map(str, value.shape)) or 'scalar'}"


def test_resnet19_has_the_released_outputs_gradients_and_running_statistics():
    golden = np.load(GOLDEN / "resnet19.npz")
    model = archs.build("resnet19", timestep=int(golden["T"]), num_classes=10)
    model.load_state_dict(golden_state(model.state_dict(), int(golden["seed"])))
    x, y = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(x), golden["logits_eval"], rtol=1e-7)
    outputs = model.train()(x)
    F.cross_entropy(outputs.mean(0), y).backward()
    np.testing.assert_allclose(outputs.detach(), golden["logits_train"], rtol=1e-7)
    for name, norm in zip(golden["grad_names"], golden["grad_norms"]):
        np.testing.assert_allclose(model.get_parameter(name).grad.norm(), norm, rtol=1e-7)
    for name in golden.files:
        if name.startswith("bn:"):
            statistics = model.get_buffer(name.removeprefix("bn:"))
            np.testing.assert_allclose(statistics, golden[name], rtol=1e-7)


@pytest.mark.parametrize("reset, decay_input, detach_reset", VARIANTS)
@pytest.mark.parametrize("detach_membrane", [False, True])
def test_neurons_are_their_loop(reset, decay_input, detach_reset, detach_membrane):
    lif = LIF(1.7, 0.8, reset, "sigmoid", None, decay_input, detach_reset, detach_membrane)
    x = 2 * torch.randn(5, 2, 3, 4)
    cotangent = torch.randn_like(x)
    spikes, gradient = spikes_and_gradient(lif, x, cotangent)
    expected, expected_gradient = spikes_and_gradient(lif.loop, x, cotangent)
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_half_precision_has_the_spikes_of_single_precision():
    x, cotangent = 2 * torch.randn(6, 5, 40).bfloat16(), torch.randn(6, 5, 40).bfloat16()
    spikes, gradient = spikes_and_gradient(LIF(), x, cotangent)
    expected, expected_gradient = spikes_and_gradient(LIF(), x.float(), cotangent.float())
    torch.testing.assert_close(spikes, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient.bfloat16(), rtol=0.03, atol=0.03)


def test_compiled_neurons_are_the_neurons_in_the_layout_of_convolutions():
    """What is compiled is run without a compiler here."""
    x = 2 * torch.randn(12, 3, 2, 5).to(memory_format=torch.channels_last).unflatten(0, (4, 3))
    cotangent, compiled = torch.randn_like(x), LIF()
    compiled.compile_loop()
    with torch.compiler.set_stance("force_eager"):
        outputs = spikes_and_gradient(compiled, x, cotangent)
    torch.testing.assert_close(outputs, spikes_and_gradient(LIF(), x, cotangent))


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_has_integral_one_and_by_default_peak_one(name):
    u = torch.linspace(-500, 500, 1_000_001)
    assert SURROGATES[name](u, PEAK_ONE_ALPHA[name]).max().item() == pytest.approx(1)
    integral = torch.trapezoid(SURROGATES[name](u, 3.0), u)
    assert integral.item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("norm, updates", [("step", 3), ("folded", 1)])
def test_batchnorm_is_torchs_in_a_loop_over_timesteps_or_of_the_fold(norm, updates):
    x = torch.randn(3, 4, 2, 5, 5, requires_grad=True)
    layer, twin = BatchNorm(2, norm), nn.BatchNorm2d(2)
    outputs = layer(x)
    expected = torch.cat([twin(batch) for batch in x.flatten(0, 1).chunk(updates)]).view_as(x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    cotangent = torch.randn_like(x)
    gradients = torch.autograd.grad(outputs, [x, *layer.parameters()], cotangent)
    twins = torch.autograd.grad(expected, [x, *twin.parameters()], cotangent)
    torch.testing.assert_close(gradients, twins)


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_every_arch_takes_images_and_frames_of_any_size_and_keeps_no_state(arch):
    model, images = small(arch, image_size=(9, 20)).eval(), torch.rand(2, 2, 9, 20)
    frames = images.unsqueeze(1).repeat(1, 3, 1, 1, 1)
    outputs = model(images)
    assert outputs.shape == (3, 2, 4)
    assert torch.equal(model(images), outputs)
    torch.testing.assert_close(model(images[1:]), outputs[:, 1:])
    torch.testing.assert_close(model(frames), outputs)


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_what_stands_before_the_first_neurons_runs_once_for_an_image(arch):
    model = small(arch)
    model(torch.rand(4, 2, 8, 8))
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    counts = [norm.num_batches_tracked.item() for norm in norms]
    assert counts[0] == 1 and set(counts[1:]) <= {3}


@pytest.mark.parametrize("arch", ["resnet20", "vgg5"])
def test_checkpointed_activations_change_nothing(arch):
    plain, checkpointed = small(arch), small(arch, checkpoint_activations=True)
    x = torch.rand(4, 2, 8, 8)
    expected = outputs_and_gradients(plain, x)
    torch.testing.assert_close(outputs_and_gradients(checkpointed, x), expected)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_network_that_is_compiled_as_a_whole_is_the_network():
    model, x = small("fc"), torch.rand(4, 2, 8, 8)
    compiled = torch.compile(model, backend="aot_eager")
    expected = outputs_and_gradients(model, x)
    torch.testing.assert_close(outputs_and_gradients(compiled, x), expected)


@pytest.mark.parametrize("option", [{"timestep": 0}, {"image_size": 7}, {"norm": "layer"},
                                    {"tau": 1}, {"surrogate": "step"}])  # fmt: skip
def test_build_refuses_what_it_cannot_make(option):
    with pytest.raises(ValueError):
        small("vgg5", **option)


def test_frames_of_another_number_of_timesteps_are_refused():
    with pytest.raises(ValueError, match="frames"):
        small("fc")(torch.zeros(1, 4, 2, 8, 8))
