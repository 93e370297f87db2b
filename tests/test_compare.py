"""Several trainings in one figure: which runs are one curve, and what the curves are called."""

import json
from itertools import count

import pytest
from helpers import ALL, run

import plots
from drawing import compare
from utils import BadInput

FLAGS = {
    "dataset": "digits",
    "optimizer": "sgd",
    "tau": 2.0,
    "detach_membrane": False,
    "seed": 0,
    "exp_name": None,
}


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run folder with these flags and final accuracy."""
    numbers = count()

    def make(accuracy=0.5, measured=True, **flags):
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        (folder / "args.json").write_text(json.dumps({"args": FLAGS | flags}))
        trained = {"test_accuracy": accuracy, "prefix_accuracy": [0.1, accuracy]}
        log = [json.dumps({"epoch": epoch} | trained) for epoch in (0, 1)]
        (folder / "log.jsonl").write_text("\n".join(log) + "\n")
        line = {"epoch": 1, "split": "train", "labels": "data", "timestep": 2, "ic": 1.25}
        line |= {"ic_ci": [1.1, 1.4], "fisher": [3, 1], "prefix_residual": [1, 3]}
        if measured:
            (folder / "fisher.jsonl").write_text(json.dumps(line) + "\n")
        return folder

    return make


def names(figures):
    return [text.get_text() for text in figures["comparison.png"].legends[0].get_texts()]


def curve(axis, name):
    """Points of the curve of that name: (x, y)."""
    [line] = [line for line in axis.lines if line.get_label() == name]
    return list(line.get_xdata()), line.get_ydata().tolist()


def test_runs_that_differ_in_seed_alone_are_one_curve_with_their_mean(make_run, figures):
    runs = [make_run(0.5, tau=4.0), make_run(0.7, tau=4.0, seed=1), make_run(0.9)]
    compare.comparison(runs)
    assert names(figures) == ["tau 4 (2 seeds)", "tau 2"]
    centroids, shares, prefixes, accuracy = figures["comparison.png"].axes
    assert curve(centroids, "tau 4 (2 seeds)") == ([1], [1.25])
    assert curve(shares, "tau 4 (2 seeds)") == ([1, 2], [0.75, 0.25])
    assert curve(prefixes, "tau 4 (2 seeds)") == ([1, 2], pytest.approx([0.1, 0.6]))
    assert curve(accuracy, "tau 4 (2 seeds)") == ([0, 1], pytest.approx([0.6, 0.6]))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"detach_membrane": True}, {}, ["detach_membrane", "no detach_membrane"]),
        ({"dampening": 0.0}, {"dampening": 0.5}, ["dampening 0", "dampening 0.5"]),
        ({"fake_shape": [1, 8, 8], "tau": 4.0}, {"fake_shape": [3, 8, 8]}, ["tau 4", "tau 2"]),
        ({"data_dir": "a"}, {"data_dir": "b", "seed": 1}, ["2 seeds"]),
        ({"epochs": 30}, {"dataset": "fashion_mnist", "epochs": 10},
         ["dataset digits", "dataset fashion_mnist"]),  # whose recipes have these epochs
    ],
)  # fmt: skip
def test_a_curve_is_named_by_what_differs(first, second, expected, make_run, figures):
    compare.comparison([make_run(**first), make_run(**second)])
    assert names(figures) == expected


def test_trainings_without_measurements_are_compared_by_their_accuracy(make_run, figures):
    compare.comparison([make_run(measured=False), make_run(tau=4.0, measured=False)])
    assert len(figures["comparison.png"].axes) == 2


def test_what_cannot_be_compared_is_refused(make_run, tmp_path):
    first, second = make_run(), make_run()
    with pytest.raises(BadInput, match=r"run0 and .*run1 have the same flags and seed"):
        compare.comparison([first, second])
    with pytest.raises(BadInput, match="holds no training"):
        compare.comparison([first, tmp_path])
    with pytest.raises(BadInput, match=r"must end with \.png or \.pdf"):
        compare.comparison([first, second], tmp_path / "figure.jpeg")


def test_two_trainings_are_drawn_from_the_command_line(unbroken, tmp_path, capsys):
    other = run(tmp_path, *ALL, "--tau", "4", script="train_snn_fisherinfo")
    plots.main([str(unbroken), str(other), "--out", str(tmp_path / "new" / "compared.pdf")])
    assert str(tmp_path / "new" / "compared.pdf") in capsys.readouterr().out
    assert (tmp_path / "new" / "compared.pdf").stat().st_size > 1000
