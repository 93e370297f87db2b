"""The figures of one run."""

import shutil

import pytest

import drawing
import plots
from utils import BadInput, read_lines


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_figures_of_a_run_are_drawn_again(unbroken, tmp_path, capsys):
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "figures")
    plots.main([str(tmp_path / "run")])
    shown = capsys.readouterr().out.split()
    paths = [tmp_path / "run" / "figures" / name for name in ("training.png", "fisher.png")]
    assert shown == [str(path) for path in paths]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_the_fisher_figure_says_what_it_shows_and_marks_the_untrained_network(unbroken, figures):
    plots.fisher_of(unbroken)
    curves, centroids, layers, _ = figures["fisher.png"].axes
    assert "train samples, data labels" in figures["fisher.png"].get_suptitle()
    assert layers.get_title().endswith("epoch 2")
    untrained, trained = curves.lines[0], curves.lines[3]
    assert untrained.get_color() == drawing.GREY != trained.get_color()
    assert legend(centroids).count("of a flat curve: 1.5") == 1


def test_a_measurement_of_several_kinds_has_a_centroid_for_each(unbroken, figures, tmp_path):
    of_data = read_lines(unbroken / "fisher.jsonl")
    exact = [line | {"labels": "exact"} for line in of_data]
    plots.fisher(of_data + exact, tmp_path / "fisher.png")
    names = legend(figures["fisher.png"].axes[1])
    assert [name for name in names if "(IC)" in name] == [
        "of $I_t$ (IC), train samples, data labels",
        "of $I_t$ (IC), train samples, exact labels",
    ]


def test_checkpoints_are_named_by_folder_and_file(unbroken, figures, tmp_path):
    line = read_lines(unbroken / "fisher.jsonl")[-1]
    checkpoints = ["a/checkpoint_0002.pt", "a/checkpoint_best.pt", "b/model.pt"]
    lines = [line | {"checkpoint": f"runs/{checkpoint}"} for checkpoint in checkpoints]
    plots.fisher(lines, tmp_path / "fisher.png")
    assert legend(figures["fisher.png"].axes[0]) == ["a/0002", "a/best", "b/model"]


@pytest.mark.parametrize("name", ["log.jsonl", "fisher.jsonl", "robustness.jsonl"])
def test_an_empty_file_is_bad_input(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=rf"has no .* in {name}"):
        plots.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["."], "holds no run"),
        ([".", "--out", "x.png"], "--out is for several runs"),
    ],
)
def test_bad_arguments_are_refused(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        plots.main(argv)
