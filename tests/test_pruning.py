"""Masks: the exact share, the lowest scores, subsets, zeros that stay; and the search of prune_snn.py."""

import pytest
import torch
import torch.nn.functional as F

import archs
import pruning


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(**kw):
    shape = dict(num_classes=5, in_channels=2, image_size=8, width=0.1, threshold=0.3)
    return archs.build("vgg5", timestep=3, **shape | kw)


def kept_and_pruned(model, masks):
    weights = {name: model.get_parameter(name).detach().abs() for name in masks}
    return (torch.cat([weights[n][m if keep else ~m] for n, m in masks.items()]) for keep in (True, False))


def test_the_share_is_exact_and_every_kept_weight_is_above_every_pruned_one():
    model = network()
    masks = pruning.all_kept(model)
    left = total = sum(m.numel() for m in masks.values())
    for rate in (0.25, 0.25, 0.5, 0.9):
        before, masks = masks, pruning.prune(pruning.magnitude(model, masks), masks, rate)
        left -= round(rate * left)
        assert sum(m.sum().item() for m in masks.values()) == left
        assert pruning.sparsity(masks) == pytest.approx(1 - left / total)
        assert all((masks[name] <= before[name]).all() for name in masks)
        kept, pruned = kept_and_pruned(model, masks)
        assert kept.min() >= pruned.max()


def test_ties_are_cut_to_the_exact_share_too():
    masks = {"a": torch.ones(6, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)}
    found = pruning.prune({"a": torch.ones(6), "b": torch.ones(2, 2)}, masks, 0.5)
    assert sum(m.sum().item() for m in found.values()) == 5


def test_batchnorm_biases_and_the_stem_are_not_pruned():
    model = network()
    assert list(pruning.all_kept(model)) == ["conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"]
    assert "conv1.weight" in pruning.all_kept(model, stem=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = pruning.all_kept(model)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.5)
    pruning.apply(model, masks)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * masks.get(name, 1))
    assert pruning.counts(masks)["fc2.weight"]["total"] == model.fc2.weight.numel()


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_pruned_weights_stay_zero_under_every_optimizer(name, amp):
    model = network()
    options = {"SGD": dict(lr=0.1, momentum=0.9)}.get(name, dict(lr=0.1))
    optimizer = getattr(torch.optim, name)(model.parameters(), weight_decay=0.1, fused=True, **options)
    x, y = torch.rand(16, 2, 8, 8), torch.arange(16) % 5

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(x).float().mean(0), y)
        loss.backward()
        optimizer.step()

    step()  # momentum that would carry on
    masks = pruning.all_kept(model)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.6)
    pruning.apply(model, masks)
    pruning.hold(optimizer, model, masks)
    before = model.conv2.weight.detach().clone()
    for _ in range(3):
        step()
        for weight, mask in masks.items():
            assert (model.get_parameter(weight)[~mask] == 0).all()
    assert not torch.equal(model.conv2.weight, before)


def test_fisher_saliency_is_the_mean_squared_gradient_times_the_squared_weight():
    model = network().double().eval()
    x, y = torch.rand(4, 2, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    masks = pruning.all_kept(model)
    found = pruning.fisher_saliency(model, masks, x, y)
    squares = 0
    for n in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[n : n + 1]).mean(0), y[n : n + 1]).backward()
        squares = squares + model.fc2.weight.grad**2
    torch.testing.assert_close(found["fc2.weight"], model.fc2.weight.detach() ** 2 * squares / 4)
    assert found.keys() == masks.keys()


def test_synaptic_operations_of_full_inputs_are_the_multiply_accumulates():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(3 * 16, 5))
    x = torch.ones(7, 2, 4, 4)
    masks = pruning.all_kept(model)
    whole = 2 * 9 * 3 * 16 + 48 * 5
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(whole)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.5)
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(2 * 9 * 3 * 16 + 120)
    x[:, 0] = 0
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(9 * 3 * 16 + 120)
