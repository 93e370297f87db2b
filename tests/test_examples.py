"""The examples run, each where its library is installed."""

from itertools import product

import numpy as np
import pytest
from helpers import ROOT, lines, run

EXAMPLES = ROOT / "examples"
SHORT = ["--epochs", "1", "--width", "0.1", "--timestep", "2"]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("library", "network", "layers"),
    [
        ("spikingjelly", "spikingjelly_net.py:sew_resnet", 3),
        ("snntorch", "snntorch_net.py:build", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:measured one sample at a time")
def test_a_network_of_another_library_is_trained_and_measured(library, network, layers, tmp_path):
    pytest.importorskip(library)
    digits = ["--dataset", "digits", "--datanum", "64", "--arch", f"{EXAMPLES}/{network}"]
    fisher = ["--fisher_epochs", "1", "--fisher_samples", "2"]
    folder = run(tmp_path, *digits, *fisher, script="train_snn_fisherinfo", flags=SHORT)
    assert len(lines(folder, "log.jsonl")[-1]["spike_rate"]) == layers
    assert lines(folder, "fisher.jsonl")[0]["fisher"][1] > 0


def event(x, y, polarity, time):
    """The five bytes of an event in a file of N-MNIST; time in microseconds."""
    return bytes([x, y, polarity << 7 | time >> 16, time >> 8 & 255, time & 255])


def test_events_become_frames_once(tmp_path):
    pytest.importorskip("tonic")
    files = []
    for split, label in product(("Train", "Test"), range(3)):
        folder = tmp_path / "NMNIST" / split / str(label)
        folder.mkdir(parents=True)
        files += [folder / f"{number:05d}.bin" for number in range(4)]
        twice = event(5, 7, 1, 10) + event(5, 7, 1, 20)
        for file in files[-4:]:
            file.write_bytes(twice + event(label, 33, 0, 90_000) + event(0, 0, 0, 100_000))
    events = ["--dataset", f"{EXAMPLES}/nmnist.py:frames", "--data_dir", str(tmp_path)]
    run(tmp_path / "first", *events, "--arch", "vgg5", flags=SHORT)
    for file in files:
        file.write_bytes(b"")  # is not read again
    run(tmp_path / "second", *events, "--arch", "vgg5", flags=SHORT)
    counts = np.load(tmp_path / "NMNIST" / "Train_T2.npy")  # (N, T, polarity, y, x)
    assert counts.shape == (12, 2, 2, 34, 34)
    assert counts[8, 0, 1, 7, 5] == 2 and counts[8, 1, 0, 33, 2] == 1 and counts[8].sum() == 3


def test_a_model_is_measured_over_a_loader(tmp_path, capsys):
    import examples.measure_my_model as example

    example.main(tmp_path / "x.png", epochs=1)
    assert (tmp_path / "x.png").exists()
    assert "IC " in capsys.readouterr().out
