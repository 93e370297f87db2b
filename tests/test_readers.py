"""Where arrays come from: files that are read or refused, and sets that are made."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT

import readers
from utils import BadInput


def flags(frames=None, **others):
    return SimpleNamespace(frames=frames, **others)


def read_npz(path, **changes):
    """The arrays of a file of 4-step frames in three classes, but for the changes."""
    arrays = {"x_train": np.zeros((6, 4, 2, 8, 8), np.uint8), "y_train": np.arange(6) % 3}
    arrays |= {"x_test": np.ones((3, 4, 2, 8, 8), np.uint8), "y_test": np.arange(3)}
    np.savez(path, **arrays | changes)
    return readers.read(flags(dataset="npz", data_file=str(path), timestep=4))


def test_own_images_or_frames_are_read_from_an_npz_file(tmp_path):
    x = np.random.default_rng(0).random((6, 1, 8, 9))
    y = np.array([2, 0, 1, 1, 0, 2], np.uint8)
    images, labels, _, _ = read_npz(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x[:3])
    assert torch.equal(images, torch.from_numpy(x).float())
    assert labels.tolist() == [2, 0, 1, 1, 0, 2]
    turned = {"x_train": x[..., ::-1].astype(">f8"), "x_test": x[:3], "y_train": y}
    turned = read_npz(tmp_path / "x.npz", **turned)
    assert torch.equal(turned[0], images.flip(3))
    _, _, frames, _ = read_npz(tmp_path / "x.npz")
    assert torch.equal(frames, torch.ones(3, 4, 2, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x_train", np.zeros((6, 8, 8)), r"x_train of npz .* add an axis for C = 1"),
        ("x_test", np.zeros((3, 8, 8, 3)), r"\[3, 8, 8, 3\], .* transpose channels-last arrays"),
        ("x_train", np.zeros((6, 3, 2, 8, 8)), "pass --timestep 3"),
        ("x_train", np.array([[1], [1, 2]], object), "arrays of numbers .*Object arrays"),
        ("x_train", np.full((6, 4, 2, 8, 8), np.nan), "has values that are not finite"),
        ("x_test", np.zeros((3, 4, 2, 9, 8), np.uint8), "must have samples of one shape and type"),
        ("x_train", np.ones((6, 4, 2, 8, 8), complex), "real numbers, not torch.complex128"),
        ("y_train", np.zeros((6, 1)), r"y_train of npz has shape \[6, 1\], not \[N\]"),
        ("y_test", np.arange(3) / 2, r"start with 0, 0\.5, 1, 2: number .* from 0"),
        ("y_test", np.array([1, 4, 2]), "start with 0, 1, 2, 4: number the classes"),
    ],
)
def test_an_array_that_no_network_takes_is_refused_by_name(name, array, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        read_npz(tmp_path / "x.npz", **{name: array})


def test_tensors_of_a_user_bring_no_graph():
    code = f"{ROOT / 'tests' / 'own.py'}:with_graph"
    args = flags(dataset=code, data_dir="data", timestep=4)
    assert not readers.read(args)[0].requires_grad


def test_a_file_that_is_missing_damaged_or_incomplete_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    args = flags(dataset="npz", data_file=str(path))
    with pytest.raises(BadInput, match="No such file"):
        readers.read(args)
    np.savez(path, x_train=np.zeros(3), y_train=np.zeros(3), y_test=np.zeros(3))
    with pytest.raises(BadInput, match=r"x\.npz is not an \.npz with .*x_test is not a file"):
        readers.read(args)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadInput, match=r"x\.npz is not an \.npz"):
        readers.read(args)


def put_fashion_mnist(folder, images, labels):
    """Put files with these bytes where torchvision looks for the two splits."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return flags(dataset="fashion_mnist", data_dir=str(folder))


def test_a_set_of_torchvision_is_read_from_files_that_are_there(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    head = bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28])
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 5, 3, 1, 4, 2, 0])
    args = put_fashion_mnist(tmp_path, head + x.tobytes(), labels)
    x_train, y_train, x_test, _ = readers.read(args)
    assert torch.equal(x_train, torch.from_numpy(x).unsqueeze(1))
    assert torch.equal(x_test, x_train)
    assert y_train.tolist() == [3, 1, 4, 2, 0]


def test_a_set_that_is_damaged_or_missing_names_one_that_needs_no_file(tmp_path):
    damaged = put_fashion_mnist(tmp_path, b"no idx file", b"no idx file")
    missing = flags(dataset="cifar10", data_dir=__file__)  # no folder: nothing downloads
    for args in (damaged, missing):
        with pytest.raises(BadInput, match=f"{args.dataset} .* use --dataset digits"):
            readers.read(args)


def test_colour_images_are_put_channels_first(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
    cifar10 = SimpleNamespace(data=x, targets=[0, 1, 2, 3, 4])
    torchvision = SimpleNamespace(CIFAR10=lambda *args, **flags: cifar10)
    monkeypatch.setattr(readers, "import_torchvision", lambda module: torchvision)
    images, _, _, _ = readers.read(flags(dataset="cifar10", data_dir="."))
    assert torch.equal(images, torch.from_numpy(x).permute(0, 3, 1, 2))


def test_the_class_shows_at_the_planted_timesteps_alone():
    args = flags(dataset="planted", timestep=6, planted_time=[2, 5])
    x_train, y_train, x_test, y_test = readers.read(args)
    means = torch.stack([x_train[y_train == label].mean(0) for label in range(10)])
    for t in range(1, 7):
        distance = torch.cdist(x_test[:, t - 1].flatten(1), means[:, t - 1].flatten(1))
        accuracy = (distance.argmin(1) == y_test).float().mean()
        assert accuracy == 1 if t in args.planted_time else accuracy < 0.2


def test_images_have_no_frames():
    with pytest.raises(BadInput, match="of images: leave out --frames"):
        readers.read(flags(dataset="digits", timestep=8, frames=9))
