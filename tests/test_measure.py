"""What train_snn_fisherinfo.py measures, in training and of saved models."""

import pytest
import torch
import torch.nn.functional as F
from helpers import ALL, FAKE, assert_identical, everything, lines, run
from models import Steps
from torch import nn

import archs
import config
import data
from fisher import PREFIXES, batch_means, centroid, draw_labels
from train_snn_fisherinfo import Measurement, Subset, fisher_subset, measure
from utils import BadInput, read_lines


def read_out():
    """A linear read-out of frames, T = 4, and six samples for it."""
    return Steps().eval(), Subset(torch.randn(6, 4, 5), torch.arange(6) % 3, before=0, total=6)


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
@pytest.mark.parametrize("labels", ["data", "model", "exact"])
def test_a_measurement_of_a_linear_read_out_has_its_closed_form(labels, prefix, float64):
    model, subset = read_out()
    line, per_sample = measure(Measurement(labels, prefix, batch=4, seed=3), model, subset)

    inputs, outputs = PREFIXES[prefix](subset.x.transpose(0, 1)), model(subset.x)
    p = PREFIXES[prefix](outputs).softmax(2)  # (T, N, 3)
    drawn = draw_labels(outputs, torch.Generator().manual_seed(3), prefix)
    y = drawn if labels == "model" else subset.y
    weights = p if labels == "exact" else F.one_hot(y, 3)
    residuals = (p.unsqueeze(2) - torch.eye(3)).square().sum(3)  # |p - e_y|^2 of each label y
    residual = (weights * residuals).sum(2)  # (T, N)
    gain = inputs.square().sum(2) + 1  # the 1 is of the bias
    correct = (p.argmax(2) == subset.y).double()

    torch.testing.assert_close(per_sample, residual * gain)
    assert line["fisher"] == pytest.approx(per_sample.mean(1).tolist())
    assert line["fisher_stderr"] == pytest.approx((per_sample.std(1) / 6**0.5).tolist())
    assert line["gain"] == pytest.approx(gain.mean(1).tolist())
    assert line["prefix_residual"] == pytest.approx(residual.mean(1).tolist())
    assert line["prefix_loss"] == pytest.approx((-weights * p.log()).sum(2).mean(1).tolist())
    assert line["prefix_accuracy"] == pytest.approx(correct.mean(1).tolist())


def test_a_line_has_the_fields_of_the_contract(unbroken):
    first, line = read_lines(unbroken / "fisher.jsonl")
    assert first.keys() == {
        "epoch", "timestep", "samples", "split", "labels", "prefix", "estimator", "seconds",
        "fisher", "fisher_stderr", "ic", "ic_ci", "ic_per_loss", "ic_per_residual", "gain",
        "ic_gain", "layers", "layers_scale_free", "prefix_loss", "prefix_residual",
        "prefix_accuracy",
    }  # fmt: skip
    assert line.keys() - first.keys() == {"ic_change", "ic_change_ci"}
    assert (line["epoch"], line["timestep"], line["samples"], line["labels"]) == (2, 2, 6, "data")


def test_centroids_and_layers_are_those_of_the_curve(unbroken):
    line = read_lines(unbroken / "fisher.jsonl")[-1]
    names = ("fisher", "prefix_loss", "prefix_residual")
    curve, losses, residuals = (torch.tensor(line[name]) for name in names)
    layers = torch.tensor(list(line["layers"].values()))
    assert line["ic"] == pytest.approx(centroid(curve).item())
    assert line["ic_ci"][0] < line["ic"] < line["ic_ci"][1]
    assert line["ic_per_loss"] == pytest.approx(centroid(curve / losses).item())
    assert line["ic_per_residual"] == pytest.approx(centroid(curve / residuals).item())
    assert list(line["layers"]) == ["fc1", "bn_fc1", "fc2"]
    torch.testing.assert_close(layers.sum(0), curve)


def test_a_change_is_from_the_measurement_before_of_the_same_kind(undrawn, tmp_path):
    argv = ["--fisher_epochs", "0", "1", "2", "--fisher_labels", "data", "exact"]
    measured = lines(run(tmp_path, *argv, script="train_snn_fisherinfo"), "fisher.jsonl")
    for before, line in zip(measured, measured[2:]):
        assert line["labels"] == before["labels"]
        assert line["ic_change"] == pytest.approx(line["ic"] - before["ic"], abs=1e-6)


def test_measuring_does_not_change_the_training(unbroken, undrawn, tmp_path):
    plain, measured = everything(run(tmp_path, *ALL)), everything(unbroken)
    for name in ("checkpoint_latest.pt", "checkpoint_0001.pt", "log.jsonl"):
        assert_identical(plain[name], measured[name])


def test_the_released_estimator_is_of_the_gradients_of_batch_means(float64):
    model, subset = read_out()
    line = measure(Measurement(prefix="instant", estimator="release", batch=3), model, subset)[0]
    means = batch_means(model, subset.x, subset.y, 3, prefix="instant")
    assert line["fisher"] == pytest.approx(sum(means.values()).mean(1).tolist())


def test_the_samples_are_drawn_by_the_seed_and_not_augmented():
    images, statistics = torch.rand(64, 1, 8, 8), (torch.zeros(1), torch.ones(1))
    dataset = data.ImageSet(images, torch.arange(64), 64, 1.0, *statistics, pad=2, flip=True)
    args = config.parse("train_snn_fisherinfo", ["--fisher_samples", "40"])
    subset, again = (fisher_subset(args, dataset, "train") for _ in range(2))
    assert torch.equal(subset.x, images[subset.y]) and torch.equal(subset.y, again.y)
    assert len(subset.y.unique()) == 40
    args.seed = 1
    assert not torch.equal(fisher_subset(args, dataset, "train").y, subset.y)
    assert fisher_subset(args, dataset, "train", whole=16).total == 32


def test_gradients_that_are_all_zero_have_no_centroid():
    model = nn.Sequential(nn.Linear(5, 1), nn.Unflatten(0, (1, -1)))  # of one class: it is certain
    subset = Subset(torch.randn(6, 5), torch.zeros(6, dtype=torch.int64), before=0, total=6)
    with pytest.raises(BadInput, match="no centroid"):
        measure(Measurement(), model, subset)


def test_saved_models_are_measured_as_they_were_in_training(unbroken, undrawn, tmp_path):
    paths = [str(unbroken / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--fisher_samples", "6", "--checkpoints", *paths]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    saved, trained = lines(folder, "fisher.jsonl"), lines(unbroken, "fisher.jsonl")
    for line in (saved[1], trained[1]):  # changes from epoch 1, and from epoch 0
        del line["ic_change"], line["ic_change_ci"]
    assert_identical(saved[1], trained[1])


def test_a_checkpoint_of_the_release_is_measured(undrawn, tmp_path):
    shape = {"timestep": 2, "num_classes": 10, "in_channels": 2, "image_size": 8, "width": 0.1}
    state = archs.build("fc", **shape).state_dict()
    path = tmp_path / "T2_Dfake_Afc_ce_ckpt_0020.pth.tar"
    torch.save({"state_dict": {f"module.{name}": state[name] for name in state}}, path)
    argv = ["--arch", "fc", "--width", "0.1", "--timestep", "2", "--checkpoints", str(path)]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=FAKE)
    assert lines(folder, "fisher.jsonl")[0]["epoch"] == 20
