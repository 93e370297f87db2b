"""eval_snn_robustness.py: what it writes, intervals, and signs of gradient masking."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers import lines, run

import attacks
import config
import data
import eval_snn_robustness as robustness
from utils import read_lines

QUICK = ["--eps", "16", "64", "--attack_steps", "2", "--attack_surrogate", "own", "triangle:0.5",
         "--noise_levels", "0.3", "--blur_levels", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of two seeds with different neurons."""
    flags = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--datanum", "256",
             "--no_augment", "--epochs", "4"]  # fmt: skip
    first = run(tmp_path_factory.mktemp("first"), *flags)
    second = run(tmp_path_factory.mktemp("second"), *flags, "--tau", "1.5", "--seed", "1")
    return [str(folder / "checkpoint_latest.pt") for folder in (first, second)]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    argv = ["--checkpoints", *trained, *QUICK]
    folder = tmp_path_factory.mktemp("evaluated")
    return run(folder, *argv, script="eval_snn_robustness", flags=[])


def test_every_network_has_a_line_for_each_threat_on_the_same_samples(evaluated, trained):
    records = read_lines(evaluated / "robustness.jsonl")
    threats = [("clean", 0), ("gaussian_noise", 0.3), ("blur", 1), ("fgsm", 16), ("fgsm", 64),
               ("pgd", 16), ("pgd", 64), ("unbounded", 255)]  # fmt: skip
    names = [(line["checkpoint"], line["threat"], line["strength"]) for line in records]
    assert names == [(path, *threat) for path in trained for threat in threats]
    for line in records:
        assert line["samples"] == 128
        assert len(line["accuracy"]) == len(line["accuracy_ci"]) == line["timestep"] == 2
        assert line["attacked"] == line["accuracy"][1]
        assert ("masking" in line) == (line["threat"] == "unbounded")
        if line["threat"] == "pgd":  # each is attacked with the gradient of the other, too
            assert {line["checkpoint"], line["transfer_from"]} == set(trained)


def test_a_network_is_built_by_its_own_flags_and_as_accurate_as_in_training(evaluated, trained):
    clean = [x for x in lines(evaluated, "robustness.jsonl") if x["threat"] == "clean"]
    for path, line in zip(trained, clean):
        log = read_lines(path.replace("checkpoint_latest.pt", "log.jsonl"))[-1]
        assert line["accuracy"] == pytest.approx(log["prefix_accuracy"])


@pytest.fixture
def network(trained):
    """Settings, the first network, the second one, and test samples, in double precision."""
    args = config.parse("eval_snn_robustness", ["--checkpoints", *trained, *QUICK])
    dataset = data.load(args, torch.device("cpu"))[1].subset(torch.arange(20))
    model, other = (robustness.load_network(args, path, dataset).double() for path in trained)
    return args, model, other, replace(dataset, images=dataset.images.double())


def test_what_is_right_under_attack_is_right_for_inputs_attacked_one_by_one(network):
    args, model, _, dataset = network
    args.batch_size = 9
    attack = attacks.Attack(0.03, 3, 0.02, random_start=False)
    attacker = attacks.with_surrogate(model, "triangle:0.5")
    right = robustness.right(model, dataset, args, attack, attacker)
    for n in range(20):
        x, y = dataset.images[n : n + 1] / 255, dataset.labels[n : n + 1]
        x = attack(lambda pixels: attacker(dataset.encode(pixels)), x, y)
        outputs = model(dataset.encode(x))
        for t in (1, 2):
            assert right[t - 1, n] == (outputs[:t].mean(0).argmax(1) == y).item()
    assert 0 < right.sum() < right.numel()


def test_a_sample_counts_as_right_if_it_is_right_under_every_attacker(network):
    args, model, other, dataset = network
    attack = attacks.fgsm(0.03)
    worst, line = robustness.under_attack(args, model, other, dataset, attack, unbounded=False)
    alone = robustness.right(model, dataset, args, attack, model)
    attacker = attacks.with_surrogate(model, "triangle:0.5")
    triangle = robustness.right(model, dataset, args, attack, attacker)
    transferred = robustness.right(model, dataset, args, attack, other)
    assert torch.equal(worst, alone & triangle) and 0 < worst.sum() < alone.sum()
    shares = [correct[1].float().mean().item() for correct in (alone, triangle, transferred)]
    assert [*line["surrogates"].values(), line["transfer"]] == shares


def test_an_evaluation_that_is_killed_goes_on_where_it_was(evaluated, trained, undrawn, tmp_path):
    folder = shutil.copytree(evaluated, tmp_path / "run")
    path = folder / "robustness.jsonl"
    path.write_text(path.read_text()[:-3000])  # without the last lines, and a part of one
    argv = ["--checkpoints", *trained, "--resume"]
    run(tmp_path, *argv, script="eval_snn_robustness", flags=[])
    assert lines(folder, path.name) == lines(evaluated, path.name)


def attacked(threat, strength, accuracy, random=0.9, transfer=0.8, **surrogates):
    """A line about an attack."""
    line = {"threat": threat, "strength": strength, "attacked": accuracy, "samples": 400}
    surrogates["own"] = accuracy
    return line | {"random": random, "transfer": transfer, "surrogates": surrogates}


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        (attacked("fgsm", 8, 0.2), "one step (fgsm) is stronger"),
        (attacked("pgd", 8, 0.4, random=0.2), "random points are stronger"),
        (attacked("pgd", 8, 0.4, transfer=0.2), "a transferred attack is stronger"),
        (attacked("pgd", 8, 0.4, atan=0.2), "its own surrogate is weaker"),
        (attacked("unbounded", 255, 0.1), "an unbounded attack leaves an accuracy of 0.100"),
    ],
)
def test_checks_that_disagree_are_called_gradient_masking(line, sign):
    sound = [attacked("fgsm", 8, 0.6), attacked("pgd", 8, 0.4), attacked("unbounded", 255, 0.0)]
    assert robustness.masking_signs(sound) == []
    others = [other for other in sound if other["threat"] != line["threat"]]
    signs = robustness.masking_signs([*others, line])
    assert len(signs) == 1 and sign in signs[0]
