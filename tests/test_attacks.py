"""Attacks: inside the ball, never a help to the defender, of the prefix and the surrogate that were asked for."""

from argparse import Namespace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import lines, run

import archs
import attacks
import data

ATTACKS = {
    "fgsm": attacks.fgsm(0.1),
    "pgd": attacks.Attack(0.1, 5, 0.05),
    "restarts": attacks.Attack(0.1, 3, 0.05, restarts=3),
    "no start": attacks.Attack(0.1, 5, 0.05, random_start=False),
    "random": attacks.random_search(attacks.fgsm(0.1), 5),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(timestep=3):
    """A spiking network in eval mode, pixels and the labels that it predicts: float64."""
    shape = dict(num_classes=4, in_channels=2, image_size=8, width=0.1)
    model = archs.build("vgg5", timestep=timestep, threshold=0.5, **shape).double()
    model.train()
    for _ in range(20):  # running statistics with which the deeper layers spike
        model(2 * torch.rand(32, 2, 8, 8, dtype=torch.float64))
    x = torch.rand(12, 2, 8, 8, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0, 1  # at the bounds of pixels
    return model.eval(), x, model(x).mean(0).argmax(1)


def accuracy(model, x, y):
    return (model(x).mean(0).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("frames", [False, True])
def test_an_attack_stays_in_the_ball_and_in_the_pixels_and_raises_the_loss(name, frames):
    model, x, y = network()
    x = x.unsqueeze(1).repeat(1, 3, 1, 1, 1) if frames else x
    found = ATTACKS[name](model, x, y)
    assert found.shape == x.shape and found.dtype == x.dtype and not found.requires_grad
    assert (found - x).abs().max() <= 0.1 + 1e-12
    assert found.min() >= 0 and found.max() <= 1
    before, after = (attacks.margin(model(z).mean(0), y) for z in (x, found))
    assert (after >= before).all() and (after > before).any()
    if name != "random":
        assert F.cross_entropy(model(found).mean(0), y) > F.cross_entropy(model(x).mean(0), y)
        if frames:
            assert (found[:, 0] != found[:, 1]).any()


def test_more_steps_and_more_restarts_never_help_the_defender():
    model, x, y = network()
    found = []
    for steps, restarts in ((0, 1), (2, 1), (6, 1), (20, 1), (20, 3)):
        torch.manual_seed(1)
        attack = attacks.Attack(0.15, steps, 0.03, restarts=restarts)
        found.append(attacks.margin(model(attack(model, x, y)).mean(0), y))
    for fewer, more in pairwise(found):
        assert (more >= fewer - 1e-12).all()
    assert (found[-1] > 0).sum() > (found[0] > 0).sum()


def test_on_a_linear_model_one_step_is_the_formula_and_many_steps_reach_the_worst_corner():
    weight = torch.randn(2, 6, dtype=torch.float64)
    x, y = 0.5 + 0.1 * torch.rand(9, 6, dtype=torch.float64), torch.randint(2, (9,))
    worst = x - 0.1 * (weight[y] - weight[1 - y]).sign()
    for attack in (attacks.fgsm(0.1), attacks.Attack(0.1, 30, 0.02)):
        torch.testing.assert_close(attack(lambda z: (z @ weight.T).expand(3, -1, -1), x, y), worst)


def test_a_part_of_a_batch_is_attacked_as_it_is_within_the_whole():
    model, x, y = network()
    attack, part, found = attacks.Attack(0.15, 3, 0.05, restarts=2), slice(3, 7), []
    for own in (slice(None), part):
        torch.manual_seed(1)
        found.append(attack(model, x[own], y[own], len(x), own))
    torch.testing.assert_close(found[1], found[0][part])
    assert (found[1] != x[part]).any()


def test_a_prefix_is_attacked_as_if_the_network_ended_there():
    model, x, y = network(timestep=4)
    found = []
    for attacked, prefix in ((model, 2), (lambda z: model(z)[:2], None), (model, None)):
        torch.manual_seed(1)
        found.append(attacks.Attack(0.1, 4, 0.04, prefix=prefix)(attacked, x, y))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_surrogate_of_the_attacker_changes_the_gradient_alone_and_goes_again():
    model, x, y = network()
    lif = model.lif1

    def gradient():
        z = x.clone().requires_grad_()
        outputs = model(z)
        return outputs.detach(), torch.autograd.grad(F.cross_entropy(outputs.mean(0), y), z)[0]

    outputs, own = gradient()
    with attacks.surrogates_of(model, "own"):
        assert torch.equal(gradient()[1], own)
    with pytest.raises(KeyError), attacks.surrogates_of(model, "triangle:0.5"):
        assert (lif.surrogate, lif.surrogate_alpha) == ("triangle", 0.5)
        assert torch.equal(gradient()[0], outputs) and not torch.equal(gradient()[1], own)
        raise KeyError
    assert torch.equal(gradient()[1], own)
    assert attacks.parse_surrogate("sigmoid") == ("sigmoid", 4.0)
    for bad in ("relu", "atan:0", "atan:x", "atan:nan"):
        with pytest.raises(ValueError):
            attacks.parse_surrogate(bad)


def test_parameters_get_no_gradient_and_batchnorm_sees_nothing():
    model, x, y = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ATTACKS["pgd"](model, x, y)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_margin_is_above_zero_exactly_where_the_prediction_errs():
    outputs, y = torch.randn(200, 5), torch.randint(5, (200,))
    assert torch.equal(attacks.margin(outputs, y) > 0, outputs.argmax(1) != y)
    assert attacks.margin(torch.tensor([[1.0, 3.0, 2.5]]), torch.tensor([1])).item() == -0.5


def test_pixels_reach_the_network_standardised_or_as_spikes_whose_gradient_counts_as_one():
    x = torch.rand(6, 2, 8, 8)
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.2, 0.5])
    plain = data.ImageSet(x, torch.arange(6), 6, mean, std)
    torch.testing.assert_close(plain.encode(x), plain.batch(torch.arange(6))[0])
    poisson = data.ImageSet(x, torch.arange(6), 6, mean, std, poisson_steps=4)
    z = x.clone().requires_grad_()
    torch.manual_seed(1)
    spikes = poisson.encode(z)
    torch.manual_seed(1)
    assert torch.equal(spikes, poisson.encode(x)) and set(spikes.unique().tolist()) == {0, 1}
    (gradient,) = torch.autograd.grad(spikes[:, :2].sum(), z)
    assert torch.equal(gradient, torch.full_like(x, 2))


@pytest.mark.parametrize("amp", [[], ["--amp", "bf16"]])
def test_training_on_adversarial_inputs_counts_each_batch_once_and_makes_them_harder(tmp_path, amp):
    argv = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--epochs", "4", *amp]
    plain = run(tmp_path / "plain", *argv)
    hard = run(tmp_path / "hard", *argv, "--adv_train", "--eps", "64", "--attack_steps", "2")
    counts = []
    for folder in (plain, hard):
        state = torch.load(folder / "checkpoint_latest.pt", weights_only=True)["state_dict"]
        counts.append(state["bn1.num_batches_tracked"].item())
    assert counts[0] == counts[1] > 0
    assert lines(hard, "log.jsonl")[-1]["train_loss"] > lines(plain, "log.jsonl")[-1]["train_loss"]


def test_an_attack_is_what_its_flags_say():
    args = Namespace(
        attack_prefix=2,
        attack_step_size=None,
        attack_steps=5,
        attack_restarts=3,
        no_random_start=False,
    )
    assert attacks.make(args, "fgsm", 51) == attacks.Attack(
        0.2, 1, 0.2, random_start=False, prefix=2
    )
    assert attacks.make(args, "pgd", 51) == attacks.Attack(0.2, 5, 0.1, restarts=3, prefix=2)
    args.attack_step_size, args.no_random_start = 25.5, True
    assert attacks.make(args, "pgd", 51) == attacks.Attack(
        0.2, 5, 0.1, random_start=False, restarts=3, prefix=2
    )


def test_a_random_start_is_anywhere_in_the_ball():
    x, y = torch.full((2000, 1), 0.5, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    found = attacks.random_search(attacks.fgsm(0.1), 1)(
        lambda z: torch.cat([0 * z, (z - x).abs()], 1)[None], x, y
    )
    assert (
        (found - x).min() < -0.099 and (found - x).max() > 0.099 and (found - x).mean().abs() < 0.01
    )
    tries = attacks.random_search(attacks.fgsm(0.1), 20)(
        lambda z: torch.cat([0 * z, (z - x).abs()], 1)[None], x, y
    )
    assert (tries - x).abs().mean() == pytest.approx(0.1 * 20 / 21, rel=0.01)
