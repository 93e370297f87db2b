"""What train_snn_fisherinfo.py measures, in training and of saved models."""

import warnings
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ALL, TINY, assert_identical, everything, lines, run
from models import Steps
from torch import nn

import archs
import config
import data
import train_snn_fisherinfo
from fisher import PREFIXES, batch_means, centroid, draw_labels
from train_snn_fisherinfo import Subset, fisher_subsets, measure
from utils import BadInput, StopSignals, read_lines


def test_a_measurement_has_the_fields_of_the_contract(unbroken):
    first, line = read_lines(unbroken / "fisher.jsonl")
    assert first.keys() == {
        "epoch", "timestep", "samples", "split", "labels", "fisher", "fisher_stderr", "ic", "ic_ci", "ic_per_loss",
        "ic_per_residual", "layers", "layers_scale_free", "prefix", "prefix_loss", "prefix_residual", "prefix_accuracy",
        "estimator", "seconds", "gain", "ic_gain",
    }  # fmt: skip
    assert line.keys() - first.keys() == {"ic_change", "ic_change_ci"}
    assert line["ic_change"] == pytest.approx(line["ic"] - first["ic"], abs=1e-6)
    assert line["ic_change_ci"][0] < line["ic_change"] < line["ic_change_ci"][1]
    assert (line["epoch"], line["timestep"], line["samples"], line["labels"]) == (2, 2, 6, "data")
    assert list(line["layers"]) == ["fc1", "bn_fc1", "fc2"]
    total = [sum(values[t] for values in line["layers"].values()) for t in range(2)]
    assert total == pytest.approx(line["fisher"])
    i_1, i_2 = line["fisher"]
    for of, by in (("ic_per_loss", "prefix_loss"), ("ic_per_residual", "prefix_residual")):
        a, b = i_1 / line[by][0], i_2 / line[by][1]
        assert line[of] == pytest.approx((a + 2 * b) / (a + b))
    assert (
        line["ic"] == pytest.approx((i_1 + 2 * i_2) / (i_1 + i_2))
        and line["ic_ci"][0] < line["ic"] < line["ic_ci"][1]
    )


@pytest.mark.parametrize("labels", ["data", "model", "exact"])
def test_the_gain_counts_every_sample_alike_and_no_label(labels, float64):
    """Of a linear read-out it is the squared length of the mean input, with a 1 for the bias."""
    model, x = Steps().eval(), torch.randn(6, 4, 5)
    args = Namespace(
        seed=0, timestep=4, fisher_estimator="exact", fisher_prefix="cumulative", fisher_batch=4
    )
    with StopSignals() as stop:
        line = measure(args, model, Subset(x, torch.arange(6) % 3, 0, 6), labels, stop)[0]
    means = torch.stack([x[:, :t].mean(1) for t in range(1, 5)])  # (T, N, 5)
    expected = (means.square().sum(2) + 1).mean(1)
    assert line["gain"] == pytest.approx(expected.tolist())
    assert line["ic_gain"] == pytest.approx(centroid(expected).item())


@pytest.mark.parametrize("prefix", ["cumulative", "instant"])
@pytest.mark.parametrize("labels", ["data", "model", "exact"])
def test_a_measurement_of_a_linear_read_out_has_its_closed_form(labels, prefix, float64):
    model, x, y = Steps().eval(), torch.randn(6, 4, 5), torch.arange(6) % 3
    args = Namespace(
        seed=3, timestep=4, fisher_estimator="exact", fisher_prefix=prefix, fisher_batch=4
    )
    with StopSignals() as stop:
        line = measure(args, model, Subset(x, y, 0, 6), labels, stop)[0]
    seen, p = PREFIXES[prefix](x.transpose(0, 1)), PREFIXES[prefix](model(x)).softmax(2)
    drawn = (
        y.expand(4, 6)
        if labels == "data"
        else draw_labels(model(x), torch.Generator().manual_seed(3), prefix)
    )
    weights = p if labels == "exact" else F.one_hot(drawn, 3)
    residual = (weights * (p.unsqueeze(2) - torch.eye(3)).square().sum(3)).sum(2)
    norms = residual * (seen.square().sum(2) + 1)
    expected = {"fisher": norms, "prefix_residual": residual, "prefix_loss": -(weights * p.log()).sum(2),
                "prefix_accuracy": (p.argmax(2) == y).double()}  # fmt: skip
    for name, values in expected.items():
        assert line[name] == pytest.approx(values.mean(1).tolist()), name
    assert line["fisher_stderr"] == pytest.approx((norms.std(1) / 6**0.5).tolist())


def test_the_released_estimator_is_of_the_prefix_that_was_asked_for(float64):
    model, x, y = Steps().eval(), torch.randn(6, 4, 5), torch.arange(6) % 3
    args = Namespace(
        seed=0, timestep=4, fisher_estimator="release", fisher_prefix="instant", fisher_batch=3
    )
    with StopSignals() as stop:
        line = measure(args, model, Subset(x, y, 0, 6), "data", stop)[0]
    expected = sum(batch_means(model, x, y, 3, prefix="instant").values()).mean(1)
    assert line["fisher"] == pytest.approx(expected.tolist())


def test_what_is_measured_is_drawn_by_the_seed_from_its_own_set_and_not_augmented():
    def subsets(seed):
        flags = ["--fisher_split", "train", "test", "--fisher_samples", "40", "--seed", seed]
        return fisher_subsets(config.parse("train_snn_fisherinfo", flags), *sets)

    images, plain = torch.rand(128, 1, 8, 8), (200, torch.zeros(1), torch.ones(1), 2, True)
    sets = [data.ImageSet(images[n : n + 64], torch.arange(n, n + 64), *plain) for n in (0, 64)]
    found, other = subsets("0"), subsets("1")
    for (split, subset), first in zip(found.items(), (0, 64)):
        assert torch.equal(subset.x, images[subset.y]) and set(subset.y.tolist()) <= set(
            range(first, first + 64)
        )
        assert sorted(subset.y.tolist()) not in (
            list(range(first, first + 40)),
            sorted(other[split].y.tolist()),
        )


def test_a_change_is_from_the_measurement_before_of_the_same_kind(tmp_path):
    argv = ["--fisher_epochs", "0", "1", "2", "--fisher_labels", "data", "exact"]
    measured = lines(run(tmp_path, *argv, script="train_snn_fisherinfo"), "fisher.jsonl")
    for before, line in zip(measured, measured[2:]):
        assert line["labels"] == before["labels"]
        assert line["ic_change"] == pytest.approx(line["ic"] - before["ic"], abs=1e-6)


def test_measuring_does_not_change_the_training(unbroken, tmp_path):
    plain = everything(run(tmp_path, *ALL))
    measured = everything(unbroken)
    for name in ("checkpoint_latest.pt", "checkpoint_0001.pt"):
        assert_identical(plain[name]["state_dict"], measured[name]["state_dict"])
    assert plain["log.jsonl"] == measured["log.jsonl"]


def test_several_kinds_are_measured_in_one_run(tmp_path):
    argv = [
        "--fisher_split",
        "train",
        "test",
        "--fisher_labels",
        "data",
        "model",
        "exact",
        "--fisher_samples",
        "40",
    ]
    measured = lines(run(tmp_path, *argv, script="train_snn_fisherinfo"), "fisher.jsonl")
    assert (
        len({(line["epoch"], line["split"], line["labels"]) for line in measured})
        == len(measured)
        == 12
    )
    late = {
        line["labels"]: line for line in measured if (line["epoch"], line["split"]) == (2, "train")
    }
    drawn, exact = late["model"], late["exact"]
    for t in range(2):  # one draw a sample scatters around the expectation
        assert abs(drawn["fisher"][t] - exact["fisher"][t]) < 5 * drawn["fisher_stderr"][t]
    state = torch.load(tmp_path / "run" / "checkpoint_latest.pt", weights_only=True)["state_dict"]
    scale = (state["fc2.weight"].square().sum() + state["fc2.bias"].square().sum()).item()
    assert exact["layers_scale_free"]["fc2"] == pytest.approx(
        [value * scale for value in exact["layers"]["fc2"]], rel=1e-4
    )


def test_the_release_estimator_is_that_of_the_mean_gradient(unbroken, tmp_path):
    argv = ["--fisher_samples", "7", "--checkpoints", str(unbroken / "checkpoint_latest.pt")]
    kinds = {}
    for name, extra in (
        ("release", ["--fisher_estimator", "release", "--fisher_batch", "3"]),
        ("exact", []),
    ):
        folder = run(tmp_path / name, *argv, *extra, script="train_snn_fisherinfo", flags=[])
        kinds[name] = lines(folder, "fisher.jsonl")[0]
    assert kinds["release"]["estimator"] == "release" and kinds["release"]["samples"] == 6
    assert kinds["exact"]["samples"] == 7
    assert all(r < e for r, e in zip(kinds["release"]["fisher"], kinds["exact"]["fisher"]))


@pytest.mark.parametrize("surrogate", ["rectangle", "triangle"])
def test_a_surrogate_without_tails_is_measured_from_the_start(surrogate, tmp_path):
    argv = [
        "--arch",
        "vgg5",
        "--surrogate",
        surrogate,
        "--epochs",
        "1",
        "--fisher_epochs",
        "0",
        "1",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = run(tmp_path, *argv, script="train_snn_fisherinfo")
    assert len(lines(folder, "fisher.jsonl")) == 2


def test_saved_models_are_measured_as_they_were_in_training(unbroken, tmp_path):
    paths = [str(unbroken / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--fisher_samples", "6", "--checkpoints", *paths]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    measured = lines(folder, "fisher.jsonl")
    assert [line["epoch"] for line in measured] == [1, 2]
    before = lines(unbroken, "fisher.jsonl")[-1]
    for line in (measured[1], before):  # from epoch 1, and from epoch 0
        line.pop("ic_change"), line.pop("ic_change_ci")
    assert measured[1] == before
    assert (folder / "figures" / "fisher.png").exists()


def test_saved_models_of_different_settings_are_not_measured_as_one(unbroken, tmp_path, capsys):
    other = run(tmp_path / "other", "--tau", "3")
    paths = [str(folder / "checkpoint_best.pt") for folder in (unbroken, other)]
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "--checkpoints", *paths, script="train_snn_fisherinfo", flags=[])
    assert (
        end.value.code == 2
        and "--tau 3.0" in capsys.readouterr().err
        and not (tmp_path / "run").exists()
    )


def test_a_measurement_that_is_resumed_without_a_name_keeps_its_flags(unbroken, tmp_path, capsys):
    argv = [
        "--checkpoints",
        str(unbroken / "checkpoint_0001.pt"),
        "--out_dir",
        str(tmp_path),
        "--fisher_samples",
        "6",
    ]
    train_snn_fisherinfo.main(argv)
    capsys.readouterr()
    config.parse("train_snn_fisherinfo", [*argv, "--resume"])
    with pytest.raises(SystemExit) as end:
        config.parse("train_snn_fisherinfo", [*argv[:-1], "7", "--resume"])
    assert end.value.code == 2 and "--fisher_samples 7 differs from 6" in capsys.readouterr().err


def test_the_data_of_a_saved_model_may_have_been_moved(tmp_path):
    arrays = {
        f"x_{split}": np.random.rand(20, 2, 8, 8).astype("float32") for split in ("train", "test")
    }
    arrays |= {f"y_{split}": np.arange(20) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays)
    argv = ["--dataset", "npz", "--data_file", str(tmp_path / "a.npz"), "--datanum", "16"]
    folder = run(tmp_path, *argv, *ALL)
    moved = (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    paths = [str(folder / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--fisher_samples", "6", "--data_file", str(moved), "--checkpoints", *paths]
    found = run(tmp_path / "2", *argv, script="train_snn_fisherinfo", flags=[])
    assert len(lines(found, "fisher.jsonl")) == 2
    argv = ["--data_file", str(moved), "--robust_samples", "6", "--checkpoints", *paths]
    assert config.parse("eval_snn_robustness", argv).data_file == str(moved)


def test_gradients_that_are_all_zero_have_no_centroid(float64):
    args = Namespace(
        seed=0, timestep=4, fisher_estimator="exact", fisher_prefix="cumulative", fisher_batch=None
    )
    model = nn.Sequential(nn.Linear(5, 1), nn.Unflatten(0, (1, -1)))  # of one class, it is certain
    with StopSignals() as stop, pytest.raises(BadInput, match="no centroid"):
        measure(
            args,
            model,
            Subset(torch.randn(6, 5), torch.zeros(6, dtype=torch.int64), 0, 6),
            "data",
            stop,
        )


def test_checkpoints_of_the_release_are_measured_and_started_from(tmp_path):
    model = archs.build("fc", timestep=2, num_classes=10, in_channels=2, image_size=8, width=0.1)
    path = tmp_path / "T2_Dfake_Afc_ce_ckpt_0020.pth.tar"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}},
        path,
    )
    shape = [*TINY[:10], *TINY[10:12]]
    folder = run(
        tmp_path,
        "--fisher_samples",
        "4",
        "--checkpoints",
        str(path),
        script="train_snn_fisherinfo",
        flags=shape,
    )
    assert lines(folder, "fisher.jsonl")[0]["epoch"] == 20
    folder = run(tmp_path / "init", "--init", str(path), "--learning_rate", "1e-30")
    state = torch.load(folder / "checkpoint_latest.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(state["fc1.weight"], model.state_dict()["fc1.weight"])
