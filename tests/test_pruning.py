"""Masks: the exact share, the smallest weights, zeros that stay; and the searches for them."""

import shutil
from itertools import pairwise

import pytest
import torch
from helpers import TINY, arguments, assert_identical, lines, run
from torch import nn

import archs
import config
import data
import prune_snn
import pruning
import train_snn
from utils import BadInput, load_checkpoint, load_run, read_lines

IMAGES = torch.zeros(2, 2, 8, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = {"num_classes": 5, "in_channels": 2, "image_size": 8, "width": 0.1}
    return archs.build("vgg5", timestep=3, threshold=0.3, **shape)


def split(state, masks):
    """|w| of all remaining and of all pruned weights."""
    remaining = [state[name][mask].abs() for name, mask in masks.items()]
    pruned = [state[name][~mask].abs() for name, mask in masks.items()]
    return torch.cat(remaining), torch.cat(pruned)


def test_the_share_is_exact_and_the_smallest_of_the_kept_weights_go(model):
    masks = pruning.all_kept(model, IMAGES)  # not the first layer, biases or BatchNorm
    assert list(masks) == ["conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"]
    left = sum(mask.numel() for mask in masks.values())
    for rate in (0.25, 0.25, 0.5, 0.9):
        before, masks = masks, pruning.prune(model, masks, rate)
        left -= round(rate * left)
        assert sum(mask.sum().item() for mask in masks.values()) == left
        assert all((masks[name] <= before[name]).all() for name in masks)
        remaining, pruned = split(model.state_dict(), masks)
        assert remaining.min() >= pruned.max()


class ReadoutFirst(nn.Module):
    """Its layers stand in another order than they run."""

    def __init__(self):
        super().__init__()
        self.readout, self.hidden = nn.Linear(6, 3), nn.Linear(5, 6)

    def forward(self, x):
        return self.readout(self.hidden(x))


def test_the_layer_that_is_not_pruned_is_the_one_that_runs_first():
    model, x = ReadoutFirst(), torch.randn(2, 5)
    assert list(pruning.all_kept(model, x)) == ["readout.weight"]
    nn.utils.parametrizations.weight_norm(model.readout)
    with pytest.raises(BadInput, match=r"readout\.weight is not a parameter"):
        pruning.all_kept(model, x)
    with pytest.raises(BadInput, match="there is nothing to prune"):
        pruning.all_kept(model.hidden, x)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_pruned_weights_stay_zero_whatever_the_optimizer_does(kind, model):
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, fused=True, **momentum)
    x, y = torch.rand(16, 2, 8, 8), torch.arange(16) % 5

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x).mean(0), y).backward()
        optimizer.step()

    step()  # momentum that would carry on
    masks = pruning.prune(model, pruning.all_kept(model, IMAGES), 0.6)
    pruning.apply(model, masks)
    pruning.hold(optimizer, model, masks)
    for _ in range(3):
        step()
        remaining, pruned = split(model.state_dict(), masks)
        assert pruned.max() == 0 < remaining.min()


# ---------------------------------------------------------------- prune_snn.py

# Frames, of which a search sees the first ones.
SEARCH = [*TINY, "--fake_shape", "4", "2", "8", "8", "--timestep", "4", "--arch", "vgg5",
          "--threshold", "0.3", "--fisher_samples", "8", "--rewind_epoch", "1", "--rounds", "2",
          "--final_rounds", "1", "2"]  # fmt: skip
STEPS = {"full": [4, 4], "2": [2, 2], "fisher": [4, 2], "kl": [4, 3], "one_shot": [4]}  # of rounds


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    argv = ["--search_timestep", *STEPS, "--information_share", "0.4"]
    return run(tmp_path_factory.mktemp("searched"), *argv, script="prune_snn", flags=SEARCH)


def latest(folder, name):
    return load_checkpoint(folder / name / "checkpoint_latest.pt")


@pytest.mark.parametrize("rule", STEPS)
def test_a_search_prunes_in_rounds_and_ends_with_all_timesteps(rule, searched):
    records = [line for line in read_lines(searched / "pruning.jsonl") if line["search"] == rule]
    rounds = [line["timestep"] for line in records if line["stage"] == "search"]
    finals = [(x["round"], x["timestep"]) for x in records if x["stage"] == "final"]
    assert rounds == STEPS[rule]
    assert finals == [(1, 4), (2, 4)]
    assert records[-1]["sparsity"] == pytest.approx(1 - 0.75**2, abs=1e-3)


@pytest.mark.parametrize("rule", STEPS)
def test_a_round_prunes_the_smallest_weights_of_the_round_before(rule, searched):
    last = "round_02" if rule == "full" else "final_02"
    names = ["round_00", last] if rule == "one_shot" else ["round_00", "round_01", last]
    for name, following in pairwise(names):
        before, after = latest(searched / rule, name), latest(searched / rule, following)
        remaining, pruned = split(before["state_dict"], after["masks"])
        assert len(pruned) and remaining.min() >= pruned.max()
        assert split(after["state_dict"], after["masks"])[1].max() == 0


def test_a_round_starts_from_the_kept_weights_of_the_rewind_epoch(searched, tmp_path):
    args = config.parse("prune_snn", arguments(tmp_path, flags=SEARCH))
    model, _, test_set = train_snn.setup(args)
    rewound = load_checkpoint(searched / "full" / "round_00" / "checkpoint_0001.pt")
    model.load_state_dict(rewound["state_dict"])
    pruning.apply(model, latest(searched, "full/round_02")["masks"])
    first = lines(searched / "full" / "round_02", "log.jsonl")[0]
    assert first["epoch"] == 1
    assert first["prefix_loss"] == train_snn.evaluate(model, test_set, args)["prefix_loss"]


def test_a_round_with_fewer_timesteps_is_evaluated_on_the_first_frames(searched):
    round_folder = searched / "2" / "round_01"
    model, args = load_run(round_folder)
    assert (args.timestep, args.frames) == (2, 4)
    _, test_set = data.load(args, torch.device("cpu"))
    expected = lines(round_folder, "log.jsonl")[-1]["prefix_loss"]
    assert train_snn.evaluate(model, test_set, args)["prefix_loss"] == expected


def test_a_search_that_is_killed_goes_on_to_the_same_network(searched, undrawn, tmp_path):
    """The folder is as a kill after the first round leaves it."""
    folder = shutil.copytree(searched, tmp_path / "run")
    records = lines(folder, "pruning.jsonl")
    first = (folder / "pruning.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "pruning.jsonl").write_text(first)
    for rule in ("2", "fisher"):
        for later in ("round_01", "final_01", "final_02"):
            shutil.rmtree(folder / rule / later)
    run(tmp_path, "--resume", script="prune_snn", flags=[])
    assert lines(folder, "pruning.jsonl") == records
    resumed, unbroken = (latest(f, "fisher/final_02")["state_dict"] for f in (folder, searched))
    assert_identical(resumed, unbroken)


def test_the_fewest_timesteps_hold_a_share_of_the_information():
    for share, fewest in [(0.1, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.95, 4), (1, 4)]:
        assert prune_snn.fewest_by_information([4, 3, 2, 1], share) == fewest


def test_the_early_time_ticket_is_of_the_fewest_timesteps_that_predict_as_all():
    for gaps, fewest in [((0, 0, 9, 3, 3), 3), ((0, 0, 0, 10, 5), 4), ((0, 0, 0, 0, 15), 5)]:
        outputs = torch.tensor([[[gap, 0.0]] for gap in gaps])  # (T, 1, 2)
        assert prune_snn.fewest_by_kl(outputs) == fewest
