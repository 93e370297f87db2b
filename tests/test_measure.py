"""What train_snn_fisherinfo.py and `measure` measure, in training and of saved models."""

import pytest
import torch
import torch.nn.functional as F
from helpers import ALL, FAKE, assert_identical, everything, lines, run
from models import Readout
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import archs
import config
import data
import plots
from fisher import (
    PREFIXES,
    batch_means,
    centroid,
    draw_labels,
    measure,
    prefix_losses,
    prefix_residuals,
)
from train_snn_fisherinfo import fisher_batches
from utils import read_lines


def samples():
    """Six samples of frames, T = 4, in batches of four and two."""
    x, y = torch.randn(6, 4, 5), torch.arange(6) % 3
    return x, y, DataLoader(TensorDataset(x, y), batch_size=4)


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
@pytest.mark.parametrize("labels", ["data", "model", "exact"])
def test_a_measurement_of_a_linear_read_out_has_its_closed_form(labels, prefix, float64):
    model, (x, y, batches) = Readout(5, 3).eval(), samples()
    measured = measure(model, batches, labels=labels, prefix=prefix, seed=3)

    inputs, outputs = PREFIXES[prefix](x.transpose(0, 1)), model(x)
    p = PREFIXES[prefix](outputs).softmax(2)  # (T, N, 3)
    right = (p.argmax(2) == y).double()
    drawn = draw_labels(outputs, torch.Generator().manual_seed(3), prefix)
    weights = p if labels == "exact" else F.one_hot(drawn if labels == "model" else y, 3)
    residuals = (p.unsqueeze(2) - torch.eye(3)).square().sum(3)  # |p - e_y|^2 of each label y
    residual = (weights * residuals).sum(2)  # (T, N)
    gain = inputs.square().sum(2) + 1  # the 1 is of the bias
    per_sample = residual * gain

    torch.testing.assert_close(measured.per_sample, per_sample)
    assert measured.fisher == pytest.approx(per_sample.mean(1).tolist())
    assert measured.stderr == pytest.approx((per_sample.std(1) / 6**0.5).tolist())
    assert measured.ic == pytest.approx(centroid(per_sample.mean(1)).item())
    assert measured.ic_interval[0] < measured.ic < measured.ic_interval[1]
    assert measured.gain == pytest.approx(gain.mean(1).tolist())
    assert measured.prefix_residual == pytest.approx(residual.mean(1).tolist())
    assert measured.prefix_loss == pytest.approx((-weights * p.log()).sum(2).mean(1).tolist())
    assert measured.prefix_accuracy == pytest.approx(right.mean(1).tolist())


def test_the_gain_is_a_mean_over_the_samples_with_an_error(float64):
    model, (x, y, _) = Readout(5, 3).eval(), samples()
    x[0] = 1e6 * x[0, 0]  # predictions of 0 and 1 at each t
    y[0] = model(x)[0, 0].argmax()
    others = measure(model, [(x[1:], y[1:])])
    assert measure(model, [(x, y)]).gain == pytest.approx(others.gain)


def test_the_first_samples_of_any_batches_are_measured(float64):
    model, (x, y, batches) = Readout(5, 3).eval(), samples()
    first = measure(model, [(x[:5], y[:5])])
    assert first.samples == 5
    torch.testing.assert_close(measure(model, batches, samples=5).per_sample, first.per_sample)
    parts = [(x[:2], y[:2]), (x[:0], y[:0]), (x[2:5], y[2:5])]
    torch.testing.assert_close(measure(model, parts).per_sample, first.per_sample)


def test_the_released_estimator_is_of_the_gradients_of_batch_means(float64):
    model, (x, y, batches) = Readout(5, 3).eval(), samples()
    measured = measure(model, zip(x.split(2), y.split(2)), estimator="release")
    means = batch_means(model, x, y, 2)
    assert measured.fisher == pytest.approx(sum(means.values()).mean(1).tolist())
    with pytest.raises(ValueError, match="two samples or batches"):  # the second one is smaller
        measure(model, batches, estimator="release")
    with pytest.raises(ValueError, match="needs labels from"):
        measure(model, batches, estimator="release", labels="exact")


def test_predictions_of_a_network_in_half_precision_are_computed_in_single():
    model, (x, y, _) = Readout(5, 3).bfloat16().eval(), samples()
    x = 8 * x.bfloat16()  # so that many predictions are near 0 or 1
    outputs = model(x).float()
    measured = measure(model, [(x, y)])
    assert measured.prefix_residual == pytest.approx(prefix_residuals(outputs, y).mean(1).tolist())
    assert measured.prefix_loss == pytest.approx(prefix_losses(outputs, y).mean(1).tolist())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"y": torch.tensor([0, -100])}, "whole numbers from 0"),
        ({"y": torch.tensor([0, 3])}, "label 3 is none of the model's 3 classes"),
        ({"x": torch.randn(2, 4, 5).numpy()}, "must be tensors, not ndarray"),
        ({"x": torch.randn(0, 4, 5)}, "at least two samples or batches, not 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_cure(change, words):
    batch = {"x": torch.randn(2, 4, 5), "y": torch.arange(2)} | change
    with pytest.raises(ValueError, match=words):
        measure(Readout(5, 3).eval(), [(batch["x"], batch["y"])])


def test_a_measurement_without_information_has_no_centroid_and_is_drawn(tmp_path):
    certain = nn.Sequential(nn.Linear(5, 1), nn.Unflatten(0, (1, -1))).eval()  # of one class
    measured = measure(certain, [(torch.randn(6, 5), torch.zeros(6, dtype=torch.int64))])
    line = measured.line()
    assert line["fisher"] == [0.0] and line["ic"] is None and line["ic_ci"] is None
    assert plots.fisher([line], tmp_path / "fisher.png").exists()


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


def test_layers_add_up_to_the_curve_in_the_order_of_the_network(unbroken):
    line = read_lines(unbroken / "fisher.jsonl")[-1]
    assert list(line["layers"]) == ["fc1", "bn_fc1", "fc2"]
    layers = torch.tensor(list(line["layers"].values()))
    torch.testing.assert_close(layers.sum(0), torch.tensor(line["fisher"]))


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


def test_the_samples_are_drawn_by_the_seed_and_not_augmented():
    images, statistics = torch.rand(64, 1, 8, 8), (torch.zeros(1), torch.ones(1))
    dataset = data.ImageSet(images, torch.arange(64), 64, 1.0, *statistics, pad=2, flip=True)
    args = config.parse("train_snn_fisherinfo", ["--fisher_samples", "40"])
    ((x, y),) = fisher_batches(args, dataset)
    assert torch.equal(x, images[y]) and len(y.unique()) == 40
    assert torch.equal(fisher_batches(args, dataset)[0][1], y)
    args.seed = 1
    assert not torch.equal(fisher_batches(args, dataset)[0][1], y)


def test_saved_models_are_measured_as_they_were_in_training(unbroken, undrawn, tmp_path):
    paths = [str(unbroken / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--fisher_samples", "6", "--checkpoints", *paths]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    saved, trained = lines(folder, "fisher.jsonl"), lines(unbroken, "fisher.jsonl")
    for line in (saved[1], trained[1]):  # changes from epoch 1, and from epoch 0
        del line["ic_change"], line["ic_change_ci"]
    assert_identical(saved[1], trained[1])


def test_a_checkpoint_of_the_release_is_measured_by_its_estimator(undrawn, tmp_path):
    shape = {"timestep": 2, "num_classes": 10, "in_channels": 2, "image_size": 8, "width": 0.1}
    state = archs.build("fc", **shape).state_dict()
    path = tmp_path / "T2_Dfake_Afc_ce_ckpt_0020.pth.tar"
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped}, path)
    argv = ["--arch", "fc", "--width", "0.1", "--timestep", "2", "--checkpoints", str(path)]
    argv += ["--fisher_estimator", "release", "--fisher_batch", "70", "--fisher_samples", "140"]
    (line,) = lines(run(tmp_path, *argv, script="train_snn_fisherinfo", flags=FAKE), "fisher.jsonl")
    assert (line["epoch"], line["samples"]) == (20, 140)
