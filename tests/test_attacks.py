"""Attacks: they stay in the ball, help no sample, and attack the prediction that was asked for."""

from argparse import Namespace

import pytest
import torch
from helpers import lines, run

import archs
import attacks
from attacks import Attack


@pytest.fixture
def attacked(float64):
    """A spiking network in eval mode, pixels, and the labels that it predicts."""
    shape = {"num_classes": 4, "in_channels": 2, "image_size": 8, "width": 0.1}
    model = archs.build("vgg5", timestep=4, threshold=0.5, **shape)
    for _ in range(20):  # running statistics with which the deeper layers spike
        model(2 * torch.rand(32, 2, 8, 8))
    x = torch.rand(12, 2, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1
    return model.eval(), x, model(x).mean(0).argmax(1)


def margins(model, x, y):
    return attacks.margin(model(x).mean(0), y)


@pytest.mark.parametrize("attack", [attacks.fgsm(0.1), Attack(0.1, 5, 0.05)])
def test_an_attack_stays_in_the_ball_and_makes_no_sample_easier(attack, attacked):
    model, x, y = attacked
    x = x.unsqueeze(1).repeat(1, 4, 1, 1, 1)
    points = attack(model, x, y)
    assert (points - x).abs().max() <= 0.1 + 1e-12
    assert 0 <= points.min() <= points.max() <= 1
    assert (points[:, 0] != points[:, 1]).any()  # the frames of a sample, each for itself
    assert (margins(model, points, y) >= margins(model, x, y) - 1e-6).all()
    assert (margins(model, points, y) > 0).any()


@pytest.mark.parametrize("attack", [attacks.fgsm(0.1), Attack(0.1, 30, 0.02)])
def test_a_linear_model_is_attacked_at_the_worst_corner(attack, float64):
    weight = torch.randn(2, 6)
    x, y = 0.4 + 0.2 * torch.rand(9, 6), torch.randint(2, (9,))
    points = attack(lambda pixels: (pixels @ weight.T).expand(3, -1, -1), x, y)
    torch.testing.assert_close(points, x - 0.1 * (weight[y] - weight[1 - y]).sign())


def test_a_prefix_is_attacked_as_if_the_network_ended_there(attacked):
    model, x, y = attacked
    prefix = attacks.fgsm(0.1, prefix=2)(model, x, y)
    assert torch.equal(prefix, attacks.fgsm(0.1)(lambda pixels: model(pixels)[:2], x, y))
    assert not torch.equal(prefix, attacks.fgsm(0.1)(model, x, y))


def test_an_attacker_has_another_gradient_and_the_network_stays_as_it_is(attacked):
    model, x, y = attacked
    attack = attacks.fgsm(0.1)
    outputs, points = model(x), attack(model, x, y)
    attacker = attacks.with_surrogate(model, "rectangle:0.5")
    assert torch.equal(attacker(x), outputs)
    assert not torch.equal(attack(attacker, x, y), points)
    assert torch.equal(attack(attacks.with_surrogate(model, "own"), x, y), points)
    assert torch.equal(attack(model, x, y), points)


def test_an_attack_is_what_its_flags_say():
    args = Namespace(attack_prefix=2, attack_step_size=None, attack_steps=5)
    assert attacks.make(args, "fgsm", 51) == attacks.fgsm(0.2, prefix=2)
    assert attacks.make(args, "pgd", 51) == Attack(0.2, 5, 0.1, prefix=2)
    args.attack_step_size = 25.5
    assert attacks.make(args, "pgd", 102) == Attack(0.4, 5, 0.1, prefix=2)


def test_training_on_attacked_inputs_is_harder_and_counts_each_batch_once(undrawn, tmp_path):
    flags = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--epochs", "4"]
    plain = run(tmp_path / "plain", *flags)
    hard = run(tmp_path / "hard", *flags, "--adv_train", "--eps", "64", "--attack_steps", "2")
    states = [torch.load(f / "checkpoint_latest.pt")["state_dict"] for f in (plain, hard)]
    assert states[0]["bn1.num_batches_tracked"] == states[1]["bn1.num_batches_tracked"]
    losses = [lines(folder, "log.jsonl")[-1]["train_loss"] for folder in (plain, hard)]
    assert losses[0] < losses[1]
