"""Several trainings in one figure: which runs are one curve, and what the curves are called."""

import json
from itertools import count

import pytest
from helpers import TINY, TINY_FISHER

import drawing
import plots
import train_snn_fisherinfo
from drawing import compare
from utils import BadInput

FLAGS = {"dataset": "digits", "tau": 2.0, "detach_membrane": False, "seed": 0, "exp_name": None}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn; none is written."""
    drawn = []
    monkeypatch.setattr(drawing, "write", lambda figure, path: drawn.append(figure) or path)
    return drawn


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run folder with these flags and final accuracy."""
    numbers = count()

    def make(accuracy=0.5, measured=True, **flags):
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        (folder / "args.json").write_text(json.dumps({"args": FLAGS | flags}))
        log = [
            {"epoch": e, "test_accuracy": accuracy, "prefix_accuracy": [0.1, accuracy]}
            for e in (0, 1)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        line = {"epoch": 1, "split": "train", "labels": "data", "timestep": 2, "ic": 1.25}
        line |= {"ic_ci": [1.1, 1.4], "fisher": [3, 1], "prefix_residual": [1, 3]}
        if measured:
            (folder / "fisher.jsonl").write_text(json.dumps(line) + "\n")
        return folder

    return make


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curve(axis, name):
    """Points of the curve of that name: (x, y)."""
    [line] = [line for line in axis.lines if line.get_label() == name]
    return list(line.get_xdata()), line.get_ydata().tolist()


def test_runs_that_differ_in_seed_alone_are_one_curve_with_their_mean(make_run, figures):
    runs = [make_run(0.5, tau=4.0), make_run(0.7, tau=4.0, seed=1), make_run(0.9)]
    compare.comparison(runs)
    [figure] = figures
    assert legend(figure) == ["tau 4 (2 seeds)", "tau 2"]
    *_, accuracy = figure.axes
    assert curve(accuracy, "tau 4 (2 seeds)") == ([0, 1], pytest.approx([0.6, 0.6]))


def test_the_figure_shows_centroids_shares_and_accuracies(make_run, figures):
    compare.comparison([make_run(0.5), make_run(0.7, seed=1)])
    centroids, shares, prefixes, accuracy = figures[0].axes
    assert curve(centroids, "2 seeds") == ([1], [1.25])
    dotted = [line for line in centroids.lines if line.get_linestyle() == ":"]
    assert [line.get_ydata().tolist() for line in dotted] == [[1.75]]  # of R_t
    assert curve(shares, "2 seeds") == ([1, 2], [0.75, 0.25])
    assert curve(prefixes, "2 seeds") == ([1, 2], pytest.approx([0.1, 0.6]))
    assert curve(accuracy, "2 seeds") == ([0, 1], pytest.approx([0.6, 0.6]))


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"detach_membrane": True}, {}, ["detach_membrane", "no detach_membrane"]),
        ({"fisher_epochs": ["0", "5"]}, {"fisher_epochs": []},
         ["fisher_epochs 0 5", "no fisher_epochs"]),
        ({"init": "a.pt"}, {"init": None}, ["init a.pt", "no init"]),
        ({"exp_name": "a", "data_dir": "a"}, {"data_dir": "b", "seed": 1}, ["2 seeds"]),
        ({"epochs": 30}, {"dataset": "fashion_mnist", "epochs": 10},
         ["dataset digits", "dataset fashion_mnist"]),  # whose recipes have these epochs
        ({"epochs": 20}, {"dataset": "fashion_mnist", "epochs": 10},
         ["dataset digits, epochs 20", "dataset fashion_mnist, epochs 10"]),
    ],
)  # fmt: skip
def test_a_curve_is_named_by_what_differs(first, second, names, make_run, figures):
    compare.comparison([make_run(**first), make_run(**second)])
    assert legend(figures[0]) == names


def test_trainings_without_measurements_are_compared_by_their_accuracy(make_run, figures):
    compare.comparison([make_run(measured=False), make_run(tau=4.0, measured=False)])
    compare.comparison([make_run(measured=False), make_run(tau=4.0)])
    assert [len(figure.axes) for figure in figures] == [2, 4]


def test_runs_with_the_same_flags_and_seed_are_refused(make_run):
    with pytest.raises(BadInput, match=r"run0 and .*run1 have the same flags and seed"):
        compare.comparison([make_run(), make_run()])


def test_a_folder_without_a_training_is_refused(make_run, tmp_path):
    with pytest.raises(BadInput, match="holds no training"):
        compare.comparison([make_run(), tmp_path])


@pytest.mark.parametrize("name", ["compared.png", "new/compared.pdf"])
def test_two_trainings_are_drawn_from_the_command_line(name, undrawn, tmp_path, capsys):
    flags = [*TINY, *TINY_FISHER, "--device", "cpu", "--out_dir", str(tmp_path), "--epochs", "2"]
    for argv in (flags, [*flags, "--tau", "4"]):
        train_snn_fisherinfo.main(argv)
    runs = [str(folder) for folder in sorted(tmp_path.iterdir())]
    assert len(runs) == 2
    plots.main([*runs, "--out", str(tmp_path / name)])
    assert str(tmp_path / name) in capsys.readouterr().out
    assert (tmp_path / name).stat().st_size > 1000


def test_a_figure_of_an_unknown_kind_is_refused(make_run, tmp_path):
    with pytest.raises(BadInput, match=r"must end with \.png or \.pdf"):
        compare.comparison([make_run(), make_run(tau=4.0)], tmp_path / "figure.jpeg")
