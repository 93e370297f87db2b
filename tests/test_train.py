"""Training: what a step is, what a run writes, and what stops it."""

import copy
import json
import os
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import ALL, TINY, arguments, assert_close, assert_identical, lines, run

import config
import data
import train_snn
from utils import BadInput, Run, load_checkpoint, read_lines


def prepare(samples, *argv):
    """Settings, a tiny network, and random images [N, 2, 8, 8] in the default precision."""
    args = config.parse("train_snn", [*TINY, "--threshold", "0.1", *argv])
    x, y = torch.rand(samples, 2, 8, 8), torch.arange(samples) % 10
    dataset = data.ImageSet(x, y, 10, 1.0, torch.zeros(2), torch.ones(2))
    return args, train_snn.build_model(args, dataset), dataset


def test_an_epoch_is_a_plain_loop_of_sgd_steps(float64):
    args, model, dataset = prepare(80, "--dampening", "0.3", "--weight_decay", "0.01")
    twin, losses, correct = copy.deepcopy(model).train(), 0, 0
    sgd = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01)

    optimizer = train_snn.make_optimizer(args, model)
    trained = train_snn.train_epoch(args, model, optimizer, dataset, epoch=1)

    for x, y in dataset.batches(32, args.seed, epoch=1):  # of 32, 32 and 16
        mean = twin(x).mean(0)
        loss = F.cross_entropy(mean, y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses += len(y) * loss.item()
        correct += (mean.argmax(1) == y).sum().item()
    assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    assert trained["train_loss"] == pytest.approx(losses / 80)
    assert trained["train_accuracy"] == correct / 80


def test_validation_is_the_loss_accuracy_and_spikes_of_each_prefix(float64):
    args, model, dataset = prepare(50, "--timestep", "3")
    validation = train_snn.evaluate(model, dataset, args)

    spikes = []
    model.lif_fc1.register_forward_hook(lambda module, x, output: spikes.append(output))
    outputs = model(dataset.images)
    for t in range(3):
        mean = outputs[: t + 1].mean(0)
        loss = F.cross_entropy(mean, dataset.labels).item()
        accuracy = (mean.argmax(1) == dataset.labels).double().mean().item()
        assert validation["prefix_loss"][t] == pytest.approx(loss)
        assert validation["prefix_accuracy"][t] == pytest.approx(accuracy)
    assert validation["spike_rate"] == {"lif_fc1": pytest.approx(spikes[0].mean().item())}


def test_a_run_folder_holds_what_was_promised(unbroken):
    assert {path.name for path in unbroken.rglob("*")} == {
        "args.json", "log.jsonl", "fisher.jsonl", "fisher_samples.pt", "checkpoint_latest.pt",
        "checkpoint_best.pt", "checkpoint_0001.pt", "checkpoint_0002.pt",
        "figures", "training.png", "fisher.png",
    }  # fmt: skip
    record = json.loads((unbroken / "args.json").read_text())
    assert record.keys() == {"args", "command", "versions", "device", "git"}
    log = read_lines(unbroken / "log.jsonl")
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert log[2].keys() == {
        "epoch", "lr", "train_loss", "train_accuracy", "images_per_second", "test_loss",
        "test_accuracy", "prefix_loss", "prefix_accuracy", "spike_rate",
        "synaptic_operations", "multiply_accumulates",
    }  # fmt: skip
    assert log[2]["test_accuracy"] == log[2]["prefix_accuracy"][-1]
    latest = load_checkpoint(unbroken / "checkpoint_latest.pt")
    assert latest.keys() == {"state_dict", "args", "epoch", "optimizer", "best"}
    assert latest["epoch"] == 2


@pytest.mark.parametrize("layer", ["fc1", "fc2"])  # its gradient, and the loss
def test_a_training_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(layer, tmp_path):
    args = config.parse("train_snn", arguments(tmp_path))
    model, train_set, test_set = train_snn.setup(args)

    def spoil(line):
        if line["epoch"] == 1:
            model.get_submodule(layer).weight.data.fill_(torch.nan)

    with Run(args, test_set.device) as folder:
        with pytest.raises(BadInput, match=r"not finite in epoch 2, step 1: .*--learning_rate"):
            train_snn.fit(args, folder, model, train_set, test_set, spoil)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint_latest.pt")
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_validation_on_fewer_samples_does_not_change_the_training(unbroken, undrawn, tmp_path):
    folder = run(tmp_path, *ALL, "--test_samples", "8")
    assert lines(folder, "log.jsonl")[2]["test_accuracy"] * 8 % 1 == 0
    few, all_samples = (load_checkpoint(f / "checkpoint_latest.pt") for f in (folder, unbroken))
    assert_identical(few["state_dict"], all_samples["state_dict"])


def test_the_best_checkpoint_is_the_first_of_the_highest_accuracy(undrawn, tmp_path):
    folder = run(tmp_path, "--epochs", "8", "--test_samples", "8")
    accuracy = [line["test_accuracy"] for line in lines(folder, "log.jsonl")][1:]
    best = load_checkpoint(folder / "checkpoint_best.pt")
    assert best["epoch"] == accuracy.index(max(accuracy)) + 1 < 8


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("--scheduler cosine --warmup_epochs 2", [1 / 3, 2 / 3, 1, 0.75, 0.25]),
        ("--scheduler step --lr_step 2", [1, 1, 0.1, 0.1, 0.01]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, expected):
    argv = ["--learning_rate", "1", "--epochs", "5", *schedule.split()]
    args = config.parse("train_snn", argv)
    rates = [train_snn.learning_rate(args, epoch) for epoch in range(1, 6)]
    assert rates == pytest.approx(expected)


def test_a_layer_that_hardly_spikes_is_warned_about(undrawn, tmp_path, capsys):
    run(tmp_path, "--threshold", "1000")
    assert "after epoch 1, 1 of 1 layers spike almost never" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_compiled_neurons_and_checkpointed_activations_train_as_the_others(undrawn, tmp_path):
    flags = ["--epochs", "1", "--datanum", "64"]  # batches of one size
    plain = run(tmp_path / "plain", *flags)
    fast = run(tmp_path / "fast", *flags, "--compile", "--checkpoint_activations")
    assert_close(lines(fast, "log.jsonl"), lines(plain, "log.jsonl"), 1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flags", [[], ["--amp"], ["--adv_train"], ["--encode", "p"]])
def test_an_epoch_of_eight_steps_waits_for_the_gpu_as_often_as_one_of_two(flags, tmp_path):
    waits = []
    for samples in ("64", "256"):
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(tmp_path / samples, *flags, "--device", "cuda", "--datanum", samples)
        torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1]
