"""Winograd's convolutions against direct ones, and when they are taken."""

from contextlib import nullcontext
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.overrides import BaseTorchFunctionMode

import archs
from archs import winograd
from archs.layers import Conv2d


@pytest.fixture
def winograd_calls(monkeypatch):
    """Any number of channels and windows will do; the calls of `convolve`."""
    calls, real = [], winograd.convolve
    for name, value in (("WIDE", 1), ("MANY_WINDOWS", 1), ("PIECE", 40)):
        monkeypatch.setattr(winograd, name, value)
    monkeypatch.setattr(winograd, "convolve", lambda *inputs, **how: calls.append(0) or real(*inputs, **how))
    return calls


@pytest.mark.parametrize("arch", ["resnet20", "vgg9"])
@pytest.mark.parametrize("norm", ["step", "folded"])
def test_a_training_step_with_winograd_convolutions_is_the_direct_one(arch, norm, winograd_calls):
    found = []
    for again, way in ((None, winograd.direct), (None, nullcontext), (True, nullcontext)):
        torch.manual_seed(0)
        shape = dict(timestep=3, num_classes=4, image_size=16, width=0.2, norm=norm, threshold=0.3)
        model = archs.build(arch, **shape, checkpoint_activations=again).double().to(memory_format=torch.channels_last)
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
        winograd_calls.clear()
        with way():
            outputs = model(x)
            outputs.square().sum().backward()
        assert bool(winograd_calls) == (way is nullcontext)
        found.append([outputs, *(p.grad for p in model.parameters()), *model.buffers()])
    for one, *others in zip(*found):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direct", [False, True])
def test_what_is_computed_again_has_the_convolutions_of_the_first_time(direct, winograd_calls):
    shape = dict(timestep=2, num_classes=4, image_size=8, width=0.2, checkpoint_activations=True)
    model = archs.build("resnet20", **shape).to(memory_format=torch.channels_last)
    with winograd.direct() if direct else nullcontext():
        loss = model(torch.randn(4, 3, 8, 8)).square().sum()
    before = len(winograd_calls)
    with nullcontext() if direct else winograd.direct():
        loss.backward()
    assert (before == 0) == direct and (len(winograd_calls) == 0) == direct
    assert direct or len(winograd_calls) == 3 * before - 2  # the first layer: no block, no gradient of x


@pytest.mark.parametrize("shape", [(5, 8, 8), (1, 4, 12), (7, 16, 4)])
@pytest.mark.parametrize("piece", [1, 7, 15, 1000])
def test_winograd_is_the_convolution_and_its_gradients(shape, piece, monkeypatch):
    monkeypatch.setattr(winograd, "PIECE", piece)
    (n, height, width), double = shape, dict(dtype=torch.float64)
    torch.manual_seed(0)
    x = torch.randn(n, 3, height, width, **double).requires_grad_()
    weight = torch.randn(5, 3, 3, 3, **double).requires_grad_()
    found = winograd.Winograd.apply(x, weight), F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn_like(found[1])
    of_one, of_other = (torch.autograd.grad(y, (x, weight), cotangent) for y in found)
    for one, other in zip(of_one, of_other):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layout", list(permutations(range(4))))
def test_winograd_takes_any_layout_and_its_gradients_lie_as_the_weight(layout):
    def laid_out(*shape):  # as it would lie after a permutation
        x = torch.randn([shape[i] for i in layout], dtype=torch.float64)
        return x.permute([layout.index(i) for i in range(4)])

    torch.manual_seed(0)
    x, weight, cotangent = laid_out(2, 3, 8, 4), laid_out(5, 3, 3, 3), laid_out(2, 5, 8, 4)
    wanted = F.conv2d(x, weight, padding=1)
    gradients = torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    for wanted_of in ([True, True], [True, False], [False, True]):
        leaves = [leaf.clone().requires_grad_(needs) for leaf, needs in zip((x, weight), wanted_of)]
        y = winograd.Winograd.apply(*leaves)
        y.backward(cotangent)
        torch.testing.assert_close(y, wanted, rtol=1e-11, atol=1e-11)
        for leaf, gradient in zip(leaves, gradients):
            assert (leaf.grad is not None) == leaf.requires_grad
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, gradient, rtol=1e-11, atol=1e-11)
    assert winograd.weight_gradient(x, cotangent.contiguous(), weight).stride() == weight.stride()


def test_winograd_leaves_no_trace_of_a_first_call_under_fake_tensors(winograd_calls):
    layer = Conv2d(3, 3, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 3, 8, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(x)
    assert winograd_calls
    torch.testing.assert_close(layer(x)[0], F.conv2d(x[0], layer.weight, padding=1))


def test_a_winograd_convolution_is_used_as_a_direct_one(winograd_calls):
    layer = Conv2d(3, 3, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 3, 8, 8)
    y, wanted = layer(x), F.conv2d(x[0], layer.weight, padding=1)
    assert winograd_calls and y[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y[0], wanted, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), layer.weight)
    with torch.autocast("cpu", torch.bfloat16):  # in which it was not made
        y.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-3)
    F.relu(winograd.Winograd.apply(torch.randn(4, 3, 8, 8), layer.weight), inplace=True)
    (once,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.mark.parametrize("threads", [1, 2])
def test_winograd_in_single_precision_is_the_convolution_with_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        x, weight = torch.randn(9, 32, 8, 8).requires_grad_(), torch.randn(48, 32, 3, 3).requires_grad_()
        found = winograd.Winograd.apply(x, weight), F.conv2d(x, weight, padding=1)
        cotangent = torch.randn_like(found[1])
        results = [(y, *torch.autograd.grad(y, (x, weight), cotangent)) for y in found]
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


def test_winograd_is_for_many_channels_and_windows_in_full_precision_while_training():
    def pays(
        channels=256, filters=256, images=60, size=(8, 8), kernel=3, dtype=torch.float32, of=None, lies=None, **options
    ):
        of, lies, layer = of or dtype, lies or torch.channels_last, dict(padding=1, bias=False) | options
        layer = Conv2d(channels, filters, kernel, **layer, device="meta").to(of, memory_format=lies)
        return winograd.pays(layer, torch.empty(images, channels, *size, dtype=dtype, device=device))

    device = "cpu"
    assert pays() and pays(dtype=torch.float64) and pays(images=1, size=(64, 64)) and pays(filters=512)
    assert not pays(channels=255) and not pays(filters=255) and not pays(images=59)
    assert pays(size=(64, 128)) and not pays(size=(64, 132)) and not pays(filters=512, size=(64, 128))
    assert not pays(channels=512, size=(64, 128)) and not pays(size=(8, 4)) and not pays(kernel=5, padding=1)
    assert not pays(size=(8, 10)) and not pays(size=(10, 8)) and not pays(lies=torch.contiguous_format)
    assert not pays(dtype=torch.bfloat16) and not pays(dtype=torch.float16) and not pays(of=torch.float64)
    assert not pays(stride=2) and not pays(bias=True) and not pays(padding=0) and not pays(dilation=2)
    assert not pays(groups=2) and not pays(padding_mode="circular")
    for context in (torch.autocast("cpu", torch.bfloat16), winograd.direct(), BaseTorchFunctionMode()):
        with context:
            assert not pays()
    with winograd.direct():
        with winograd.direct():
            pass
        assert not pays()
    assert pays()
    device = "meta"
    assert not pays()
    layer = Conv2d(256, 256, 3, padding=1, bias=False).to(memory_format=torch.channels_last).eval()
    assert not winograd.pays(layer, torch.empty(60, 256, 8, 8)) and winograd.pays(
        layer.train(), torch.empty(60, 256, 8, 8)
    )
    assert not winograd.pays(layer, torch.empty(60, 255, 8, 8)) and not winograd.pays(layer, torch.empty(256, 256, 8))
