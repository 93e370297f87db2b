"""Data sets, what a batch is made of, and what a set must not be."""

import argparse
import gzip
import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image

import config
import data
import readers
from utils import BadInput, Run


def args_for(*argv):
    return config.parse("train_snn", list(argv))


def test_digits_are_real_and_split_without_overlap():
    train, test, corrupted = data.load(args_for("--dataset", "digits"), torch.device("cpu"))
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.num_classes == 10 and corrupted is None
    counts = torch.cat([train.labels, test.labels]).bincount()
    assert sorted(counts.tolist()) == [174, 177, 178, 179, 180, 181, 181, 182, 182, 183]
    x, y = train.batch(torch.arange(len(train)))
    assert x.mean().abs() < 1e-4 and (x.std() - 1).abs() < 1e-3 and torch.equal(y, train.labels)


def test_the_class_shows_at_the_planted_timesteps_alone():
    train, test, _ = data.load(
        args_for("--dataset", "planted", "--planted_time", "2", "5"), torch.device("cpu")
    )
    patterns = torch.stack(
        [train.images[train.labels == k].mean(0) for k in range(10)]
    )  # (classes, T, 1, 8, 8)
    centred = test.images - test.images.mean((0, 2, 3, 4), keepdim=True)
    for t in range(8):
        guess = (
            centred[:, t].flatten(1) @ (patterns[:, t] - patterns[:, t].mean(0)).flatten(1).T
        ).argmax(1)
        accuracy = (guess == test.labels).float().mean().item()
        assert accuracy == 1 if t in (1, 4) else accuracy < 0.2
        # One distribution everywhere: two values, equally often, and uniform noise.
        assert train.images[:, t].mean().item() == pytest.approx(0.5, abs=0.1)
        assert train.images[:, t].std().item() == pytest.approx(
            (0.25 / 4 + 1 / 48) ** 0.5, abs=0.02
        )


@pytest.mark.parametrize("shape", [(6, 3, 9, 7), (6, 4, 2, 9, 7)])
def test_crop_and_flip_is_the_padded_image_cut_at_some_offset(shape):
    torch.manual_seed(0)
    x = torch.randint(1, 255, shape, dtype=torch.uint8)
    moved = data.crop_and_flip(x, 2, True)
    assert moved.shape == x.shape and moved.dtype == x.dtype
    seen = set()
    for before, after in zip(x, moved):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        places = []
        for i, j, flip in itertools.product(range(5), range(5), (False, True)):
            cut = padded[..., i : i + 9, j : j + 7]
            if torch.equal(after, cut.flip(-1) if flip else cut):
                places.append((i, j, flip))
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 3 and {flip for *_, flip in seen} == {False, True}
    assert torch.equal(data.crop_and_flip(x, 0, False), x)


def test_datanum_takes_samples_and_label_corruption_replaces_the_share_and_tells():
    full, _, _ = data.load(args_for("--dataset", "digits"), torch.device("cpu"))
    train, _, corrupted = data.load(
        args_for("--dataset", "digits", "--datanum", "400", "--label_corrupt_prob", "0.5"),
        torch.device("cpu"),
    )
    assert len(train) == 400 and len(corrupted["index"]) == 200
    assert torch.equal(full.labels[corrupted["index"]], corrupted["clean"])
    differ = (corrupted["labels"] != corrupted["clean"]).float().mean()
    assert 0.8 < differ < 0.98  # a random label is the clean one in a tenth of the cases
    again = data.load(
        args_for("--dataset", "digits", "--datanum", "400", "--label_corrupt_prob", "0.5"),
        torch.device("cpu"),
    )
    assert torch.equal(train.labels, again[0].labels)


def test_poisson_spikes_have_the_pixels_value_as_rate():
    train, _, _ = data.load(
        args_for("--dataset", "digits", "--encode", "p", "--timestep", "200"), torch.device("cpu")
    )
    torch.manual_seed(0)
    x, _ = train.batch(torch.arange(50))
    assert x.shape == (50, 200, 1, 8, 8) and set(x.unique().tolist()) == {0.0, 1.0}
    assert (x.mean(1) - train.images[:50]).abs().mean() < 0.03


def test_channels_are_standardised_by_their_own_statistics():
    images = torch.stack([torch.full((7, 8, 8), 3.0), torch.randn(7, 8, 8) * 5 + 2], 1)
    mean, std = data.channel_statistics(images)
    torch.testing.assert_close(mean, images.mean((0, 2, 3)))
    assert std[0] == 1 and std[1].item() == pytest.approx(
        images[:, 1].std(unbiased=False).item(), rel=1e-4
    )


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvision_sets_are_read_from_files_put_there_by_hand(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28))
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(5))
    train, test, _ = data.load(
        args_for("--dataset", "fashion_mnist", "--data_dir", str(tmp_path)), torch.device("cpu")
    )
    assert train.images.shape == (5, 1, 28, 28) and torch.equal(
        train.images[:, 0], torch.from_numpy(images).byte()
    )
    assert test.labels.tolist() == list(range(5))


def test_a_damaged_torchvision_file_is_one_clear_line(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(gzip.compress(b"not an idx file"))
    with pytest.raises(BadInput, match=r"fashion_mnist .* --dataset digits"):
        data.load(
            args_for("--dataset", "fashion_mnist", "--data_dir", str(tmp_path)), torch.device("cpu")
        )


def npz(path, **change):
    arrays = {
        "x_train": np.zeros((6, 4, 2, 8, 8), np.uint8), "y_train": np.arange(6) % 3,
        "x_test": np.ones((3, 4, 2, 8, 8), np.uint8), "y_test": np.arange(3),
    }  # fmt: skip
    np.savez(
        path, **{name: value for name, value in (arrays | change).items() if value is not None}
    )
    return args_for("--dataset", "npz", "--data_file", str(path), "--timestep", "4")


def test_npz_frames_are_read(tmp_path):
    train, test, _ = data.load(npz(tmp_path / "x.npz"), torch.device("cpu"))
    assert train.images.shape == (6, 4, 2, 8, 8) and test.num_classes == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x_test=None), "x_test"),
        (dict(y_train=np.arange(5)), "y_train"),
        (dict(y_train=np.arange(6) / 2), "y_train"),
        (dict(y_test=np.array([0, 1, -1])), "y_test"),
        (dict(x_train=np.zeros((6, 8, 8), np.uint8)), "x_train"),
        (dict(x_train=np.zeros((6, 4, 2, 8, 8), np.int64)), "x_train"),
        (dict(x_test=np.zeros((3, 4, 2, 9, 8), np.uint8)), "one shape"),
        (
            dict(
                x_train=np.zeros((6, 3, 2, 8, 8), np.uint8),
                x_test=np.zeros((3, 3, 2, 8, 8), np.uint8),
            ),
            "--timestep 3",
        ),
        (
            dict(
                x_train=np.zeros((6, 4, 2, 7, 7), np.uint8),
                x_test=np.zeros((3, 4, 2, 7, 7), np.uint8),
            ),
            "too small",
        ),
        (
            dict(x_train=np.full((6, 4, 2, 8, 8), np.nan), x_test=np.zeros((3, 4, 2, 8, 8))),
            "finite",
        ),
    ],
)
def test_an_unusable_npz_is_one_clear_line(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        data.load(npz(tmp_path / "x.npz", **change), torch.device("cpu"))


def test_a_file_that_is_no_npz_is_one_clear_line(tmp_path):
    path = tmp_path / "x.npz"
    args = npz(path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        whole[:300] + b"\xff" * 50 + whole[350:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"x\.npz"):
            data.load(args, torch.device("cpu"))
    with pytest.raises(BadInput, match=r"no .*y\.npz"):
        data.load(
            argparse.Namespace(**(vars(args) | {"data_file": str(tmp_path / "y.npz")})),
            torch.device("cpu"),
        )


@pytest.fixture
def tree(tmp_path):
    """Three classes of grey images, 4 in train and 2 in val, each class and image of its own brightness."""
    for split, count in (("train", 4), ("val", 2)):
        for label in range(3):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 12), (60 * label + 10 * number,) * 3).save(
                    folder / f"{number}.png"
                )
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder_of_images_is_read_ahead_and_as_it_would_be_from_memory(workers, tree):
    argv = [
        "--dataset",
        "folder",
        "--data_dir",
        str(tree),
        "--image_size",
        "8",
        "--workers",
        workers,
    ]
    train, test, _ = data.load(args_for(*argv), torch.device("cpu"))
    assert (len(train), len(test), train.num_classes, train.images.shape) == (
        12,
        6,
        3,
        (12, 3, 8, 8),
    )
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    order = torch.tensor([7, 0, 11, 3, 5])
    brightness = torch.tensor([60.0 * (n // 4) + 10 * (n % 4) for n in order]) / 255
    expected = ((brightness - train.mean[0]) / train.std[0]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    batches = list(order.split(2))
    train.expect(batches, [slice(None), slice(1, 2), slice(None)])
    found = [
        train.batch(batches[0])[0],
        train.batch(batches[1], part=slice(1, 2))[0],
        train.batch(batches[2])[0],
    ]
    torch.testing.assert_close(torch.cat(found), expected[[0, 1, 3, 4]])
    assert not train.images.coming  # all three were those read ahead
    x, y = train.subset(order).batch(torch.tensor([4, 0]))  # not announced
    torch.testing.assert_close(x, expected[[4, 0]])
    assert y.tolist() == [1, 1]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_is_named_in_one_line(workers, tree):
    damaged = tree / "train" / "class1" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    argv = [
        "--dataset",
        "folder",
        "--data_dir",
        str(tree),
        "--image_size",
        "8",
        "--workers",
        workers,
    ]
    with pytest.raises(BadInput, match=r"class1/2\.png cannot be read") as error:
        data.load(args_for(*argv), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_workers_do_not_hear_the_signals_of_a_run_nor_hold_its_folder(tree, tmp_path):
    argv = ["--dataset", "folder", "--data_dir", str(tree), "--image_size", "8", "--workers", "1"]
    run_folder = Run(tmp_path / "run", args_for(*argv), torch.device("cpu"))
    images = data.load(args_for(*argv), torch.device("cpu"))[0].images
    batches = images.load(torch.arange(len(images.labels)).split(1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    status = Path(f"/proc/{worker.pid}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))
    own, held = (
        {entry.resolve() for entry in Path(f"/proc/{process}/fd").iterdir()}
        for process in (os.getpid(), worker.pid)
    )
    assert run_folder.folder.resolve() in own - held
    run_folder.close()


def test_sixteen_bits_a_pixel_are_refused(tree):
    Image.fromarray(np.full((12, 20), 40000, np.uint16)).save(tree / "train" / "class0" / "0.png")
    argv = ["--dataset", "folder", "--data_dir", str(tree), "--image_size", "8", "--workers", "0"]
    with pytest.raises(BadInput, match=r"0\.png cannot be read.*16 bits"):
        data.load(args_for(*argv), torch.device("cpu"))[0].batch(torch.arange(4))


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(BadInput, match="train"):
        data.load(args_for("--dataset", "folder", "--data_dir", str(tmp_path)), torch.device("cpu"))


def test_a_corruption_touches_the_named_timesteps_alone():
    images = torch.rand(5, 2, 8, 8)
    for kind in ("gaussian_noise", "blur"):
        corruption = data.Corruption(4, (2, 4), kind, 0.5)
        for x in (images, images.unsqueeze(1).expand(-1, 4, -1, -1, -1)):
            found = corruption(x)
            assert found.shape == (5, 4, 2, 8, 8) and found.min() >= 0 and found.max() <= 1
            assert torch.equal(found[:, [0, 2]], images.unsqueeze(1).expand(-1, 2, -1, -1, -1))
            assert (found[:, [1, 3]] != images.unsqueeze(1)).flatten(1).any(1).all()
        assert data.Corruption(4, (), kind, 0.5)(images).shape == images.shape


def test_noise_has_its_level_and_blur_is_the_gaussians_mean():
    torch.manual_seed(0)
    grey = torch.full((50, 1, 32, 32), 0.5)
    assert data.Corruption(1, (), "gaussian_noise", 0.05)(grey).std().item() == pytest.approx(
        0.05, rel=0.02
    )
    spot = torch.zeros(1, 1, 31, 31)
    spot[..., 15, 15] = 1
    found = data.Corruption(1, (), "blur", 2.0)(spot)[0, 0]
    bell = torch.exp(-((torch.arange(31) - 15.0) ** 2) / 8)
    bell[(torch.arange(31) - 15).abs() > 6] = 0
    torch.testing.assert_close(found, bell.outer(bell) / bell.sum() ** 2, atol=1e-6, rtol=1e-4)


def test_low_and_high_frequencies_add_up_to_the_image_and_a_wave_is_in_one_of_them():
    x = torch.rand(2, 3, 8, 9)
    low, high = (data.Corruption(1, (), None, 0, band, 2.0)(x) for band in ("low", "high"))
    torch.testing.assert_close(low + high, x)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(8) / 8).expand(1, 1, 8, 8)
    for radius, kept in ((2.9, 0), (3.0, 1)):
        torch.testing.assert_close(
            data.Corruption(1, (), None, 0, "low", radius)(wave), kept * wave, atol=1e-6, rtol=0
        )
    argv = [
        "--dataset",
        "digits",
        "--freqlevel",
        "high",
        "--freq_radius",
    ]  # up to 4 cycles both ways: 5.66
    data.load(args_for(*argv, "5.6"), torch.device("cpu"))
    with pytest.raises(BadInput, match=r"--freq_radius 5\.7 .* less than 5\.66"):
        data.load(args_for(*argv, "5.7"), torch.device("cpu"))


def test_a_part_of_a_batch_is_what_it_is_within_the_whole():
    noise = ["--noisetype", "gaussian_noise", "--noisetime", "2"]
    digits = ["--dataset", "digits"]
    for argv in (["--dataset", "fake"], [*digits, "--encode", "p"], [*digits, *noise]):
        train, _, _ = data.load(args_for(*argv), torch.device("cpu"))
        found = []
        for part in (slice(None), slice(2, 5)):
            torch.manual_seed(3)
            found.append(train.batch(torch.arange(7), augment=True, part=part))
        assert torch.equal(found[0][0][2:5], found[1][0]) and torch.equal(
            found[0][1][2:5], found[1][1]
        )


def test_an_input_is_shown_as_each_timestep_sees_it(tmp_path):
    folder = run(tmp_path, "--noisetype", "gaussian_noise", "--noisetime", "2", "--epochs", "1")
    assert (folder / "figures" / "inputs.png").stat().st_size > 1000
    digits = ["--dataset", "digits", "--timestep", "4"]
    blur = ["--noisetype", "blur"]
    for argv, frames in ((blur, 1), ([*blur, "--noisetime", "3"], 4), (["--encode", "p"], 4)):
        _, test, _ = data.load(args_for(*digits, *argv), torch.device("cpu"))
        assert test.shown(5).shape == (frames, 1, 8, 8)


def test_samples_and_their_replaced_labels_are_drawn_by_the_seed():
    flags = ["--dataset", "digits", "--datanum", "100", "--label_corrupt_prob", "0.5", "--seed"]
    whole = data.load(args_for("--dataset", "digits"), torch.device("cpu"))[0]
    (one, _, replaced), (other, _, others) = (
        data.load(args_for(*flags, seed), torch.device("cpu")) for seed in "01"
    )
    assert not any(torch.equal(one.images, images) for images in (other.images, whole.images[:100]))
    assert not torch.equal(replaced["labels"], others["labels"])


def test_bytes_are_standardised_and_augmented_unless_that_is_off():
    train = data.load(args_for("--dataset", "fake"), torch.device("cpu"))[0]
    x = train.batch(torch.arange(len(train)))[0]
    assert x.mean((0, 2, 3)).abs().max() < 1e-3 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    kinds = (["fake"], ["fake", "--no_augment"], ["digits"])
    sets = [data.load(args_for("--dataset", *kind), torch.device("cpu"))[0] for kind in kinds]
    assert [(found.pad, found.flip) for found in sets] == [(4, True), (0, False), (0, False)]


def test_frames_have_statistics_of_channels_and_classes_of_both_sets(tmp_path):
    frames = torch.randn(7, 4, 2, 8, 8) * torch.tensor([1.0, 5]).view(2, 1, 1)
    torch.testing.assert_close(
        data.channel_statistics(frames)[0], frames.mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-6
    )
    args = npz(tmp_path / "x.npz", y_test=np.array([0, 1, 5]))
    assert data.load(args, torch.device("cpu"))[0].num_classes == 6


@pytest.mark.parametrize(("name", "flag"), [("cifar10", "train"), ("svhn", "split")])
def test_colour_images_are_upright_and_the_test_set_is_another(name, flag, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 9, 3), dtype=np.uint8)

    def source(place, download, **split):
        number = [True, False].index(split[flag] in (True, "train"))
        stored = images[number] if name == "cifar10" else images[number].transpose(0, 3, 1, 2)
        return argparse.Namespace(data=stored, targets=[number] * 5, labels=np.full(5, number))

    kinds = argparse.Namespace(**{readers.TORCHVISION[name]: source})
    monkeypatch.setattr(readers, "import_torchvision", lambda: kinds)
    found = readers.read_torchvision(argparse.Namespace(dataset=name, data_dir="."))
    for number in range(2):
        assert np.array_equal(found[2 * number].numpy(), images[number].transpose(0, 3, 1, 2))
        assert found[2 * number + 1].tolist() == [number] * 5


def test_the_noise_of_planted_frames_is_another_at_each_timestep():
    images = data.load(
        args_for("--dataset", "planted", "--planted_time", "1"), torch.device("cpu")
    )[0].images
    noise = 2 * images % 1
    assert ((noise[:, 0] - noise[:, 1]).abs() > 1e-3).float().mean() > 0.9


def test_of_an_image_file_the_middle_of_the_whole_height_is_seen(tree):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:16] = 255
    Image.fromarray(wide).save(tree / "train" / "class0" / "0.png")
    argv = ["--dataset", "folder", "--data_dir", str(tree), "--image_size", "8", "--workers", "0"]
    seen = data.load(args_for(*argv), torch.device("cpu"))[0].pixels(torch.tensor([0]))[0]
    assert (seen[..., :2] > 0.8).all() and (seen[..., 5:] < 0.1).all()
