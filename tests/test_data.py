"""Batches: which samples they hold, and how these are augmented, corrupted and encoded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import config
import data
from utils import BadInput


def load(*argv):
    """The training set and the test set that the flags describe."""
    return data.load(config.parse("train_snn", list(argv)), torch.device("cpu"))


def load_npz(folder, x_train, x_test, *argv):
    """The same, of a file with these inputs in two classes."""
    y_train, y_test = np.arange(len(x_train)) % 2, np.arange(len(x_test)) % 2
    np.savez(folder / "x.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return load("--dataset", "npz", "--data_file", str(folder / "x.npz"), *argv)


def test_an_epoch_has_the_pixels_of_every_sample_once_in_random_order():
    fake, _ = load("--dataset", "fake")
    fake = replace(fake, labels=torch.arange(256))
    for epoch in (None, 1):  # without an epoch, in order
        x, index = map(torch.cat, zip(*fake.batches(100, seed=0, epoch=epoch)))
        assert torch.equal(x, fake.images[index] / 255)
        assert torch.equal(index.sort()[0], fake.labels)
        assert torch.equal(index, fake.labels) == (epoch is None)


def test_what_is_random_depends_on_seed_epoch_and_batch_alone():
    fake, _ = load("--dataset", "fake")
    fake = replace(fake, corruption=data.Corruption(1, kind="gaussian_noise", level=0.1))
    batches = list(fake.batches(100, seed=0, epoch=3, augment=True))
    for number, (x, _) in enumerate(fake.batches(100, seed=0, epoch=3, augment=True)):
        torch.rand(7)  # as a measurement in between does
        assert torch.equal(x, batches[number][0])
    for seed, epoch in ((1, 3), (0, 4)):
        other, _ = next(fake.batches(100, seed, epoch, augment=True))
        assert not torch.equal(other, batches[0][0])


def test_training_leaves_out_a_last_batch_of_one_sample():
    fake, _ = load("--dataset", "fake", "--datanum", "9")
    assert [len(y) for _, y in fake.batches(4, seed=0, epoch=1)] == [4, 4]
    assert [len(y) for _, y in fake.batches(4, seed=0)] == [4, 4, 1]


def test_crop_and_flip_is_the_padded_sample_cut_at_some_offset():
    torch.manual_seed(0)
    x = torch.randint(1, 255, (6, 4, 2, 9, 7), dtype=torch.uint8)
    flips = set()
    for sample, moved in zip(x, data.crop_and_flip(x, 2, True)):
        padded = torch.nn.functional.pad(sample, (2, 2, 2, 2))
        cuts = [padded[..., i : i + 9, j : j + 7] for i in range(5) for j in range(5)]
        upright = [torch.equal(moved, cut) for cut in cuts]
        mirrored = [torch.equal(moved, cut.flip(-1)) for cut in cuts]
        assert sum(upright + mirrored) == 1
        flips.add(any(mirrored))
    assert flips == {False, True}


@pytest.mark.parametrize("name", ["digits", "planted", "fake --fake_shape 3 112 112"])
def test_images_and_planted_frames_are_standardised_by_channel(name):
    """The statistics of the last one are computed in two pieces."""
    train, _ = load("--dataset", *name.split())
    x, _ = next(train.batches(len(train), seed=0))
    channels = train.encode(x).transpose(0, -3).flatten(1)
    assert channels.mean(1).abs().max() < 1e-4
    assert (channels.std(1) - 1).abs().max() < 1e-3


def test_standardise_chooses_what_is_done_to_images():
    x = torch.rand(5, 3, 32, 32)
    rules = ("mean_std", "std", "none")
    both, scaled, plain = (load("--dataset", "fake", "--standardise", rule)[0] for rule in rules)
    mean, std = both.mean.view(3, 1, 1), both.std.view(3, 1, 1)
    torch.testing.assert_close(both.encode(x), (x - mean) / std)
    torch.testing.assert_close(scaled.encode(x), x / std)
    torch.testing.assert_close(plain.encode(x), x)


def test_a_constant_channel_is_not_divided_by_0_but_small_values_may_vary():
    mean, std = data.channel_statistics(torch.full((4, 1, 8, 8), 51, dtype=torch.uint8), 255)
    assert (mean.item(), std.item()) == (pytest.approx(0.2), 1)
    small = 1e-7 * torch.rand(4, 1, 8, 8)
    assert data.channel_statistics(small, 1)[1] == pytest.approx(small.std().item(), rel=0.01)


def test_frames_are_counts_so_the_largest_stands_for_1_and_zero_stays_zero(tmp_path):
    x_train = np.random.default_rng(0).integers(0, 6, (40, 3, 2, 8, 8)).astype(np.uint8)
    x_test = np.full((2, 3, 2, 8, 8), 9, np.uint8)
    train, test = load_npz(tmp_path, x_train, x_test, "--timestep", "3")
    x, _ = next(train.batches(40, seed=0))
    encoded = train.encode(x)
    torch.testing.assert_close(x, torch.from_numpy(x_train) / 5)
    assert torch.equal(encoded == 0, x == 0)
    torch.testing.assert_close(encoded.std((0, 1, 3, 4)), torch.ones(2), rtol=1e-3, atol=0)
    above, _ = next(test.batches(2, seed=0))
    assert torch.equal(above, torch.ones_like(above))
    assert train.images.dtype == test.images.dtype == torch.uint8


def test_poisson_spikes_have_the_pixel_as_rate_and_1_as_gradient():
    train, _ = load("--dataset", "digits", "--encode", "p", "--timestep", "200")
    x, _ = next(train.batches(50, seed=0))
    spikes = train.encode(x.requires_grad_())
    assert spikes.shape == (50, 200, 1, 8, 8)
    assert spikes.unique().tolist() == [0, 1]
    assert (spikes.mean(1) - x).abs().mean() < 0.03
    (gradient,) = torch.autograd.grad(spikes.mean(1).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))


def test_the_seed_draws_samples_and_random_labels():
    flags = ("--dataset", "digits", "--datanum", "400", "--seed")
    clean, _ = load(*flags, "0")
    train, _ = load(*flags, "0", "--label_corrupt_prob", "0.5")
    other, _ = load(*flags, "1", "--label_corrupt_prob", "0.5")
    again, _ = load(*flags, "0", "--label_corrupt_prob", "0.5")
    assert torch.equal(train.images, clean.images)
    assert torch.equal(train.labels, again.labels)
    assert 0.4 < (train.labels != clean.labels).float().mean() < 0.5  # one in ten is right again
    assert not torch.equal(train.images, other.images)


@pytest.mark.parametrize("kind", ["gaussian_noise", "blur"])
@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (5, 4, 2, 8, 8)])
def test_a_corruption_touches_the_named_timesteps_alone(kind, shape):
    x = torch.rand(shape)
    frames = x if len(shape) == 5 else x.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    corrupted = data.Corruption(4, (2, 4), kind, 0.5)(x)
    assert torch.equal(corrupted[:, [0, 2]], frames[:, [0, 2]])
    assert (corrupted[:, [1, 3]] != frames[:, [1, 3]]).flatten(1).any(1).all()
    assert 0 <= corrupted.min() <= corrupted.max() <= 1


def test_noise_has_its_level_and_blur_is_gaussian():
    torch.manual_seed(0)
    grey = torch.full((50, 1, 32, 32), 0.5)
    noisy = data.Corruption(1, kind="gaussian_noise", level=0.05)(grey)
    assert noisy.std().item() == pytest.approx(0.05, rel=0.02)
    distance = torch.arange(31) - 15.0
    spot = torch.zeros(1, 1, 31, 31)
    spot[..., 15, 15] = 1
    bell = torch.exp(-(distance**2) / 8) * (distance.abs() <= 6)
    blurred = data.Corruption(1, kind="blur", level=2.0)(spot)[0, 0]
    torch.testing.assert_close(blurred, bell.outer(bell) / bell.sum() ** 2, atol=1e-6, rtol=1e-4)


def test_low_and_high_frequencies_add_up_and_a_wave_is_in_one_of_them():
    x = torch.rand(2, 3, 8, 9)
    low, high = (data.Corruption(1, band=band, radius=2.0)(x) for band in ("low", "high"))
    torch.testing.assert_close(low + high, x)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(8) / 8).expand(1, 1, 8, 8)
    for radius, share in ((2.9, 0), (3.0, 1)):
        low = data.Corruption(1, band="low", radius=radius)(wave)
        torch.testing.assert_close(low, share * wave, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "flags", "message"),
    [
        ((6, 4, 2, 8, 8), "--timestep 4 --encode p", "frames are in time already"),
        ((6, 1, 8, 8), "--datanum 7", "--datanum 7 is above the 6 training samples"),
        ((6, 1, 8, 8), "--encode p", r"--encode p needs values in \[0, 1\]"),
    ],
)
def test_inputs_that_the_flags_do_not_fit_are_refused(shape, flags, message, tmp_path):
    x = np.full(shape, 2.0)
    with pytest.raises(BadInput, match=message):
        load_npz(tmp_path, x, x, *flags.split())
