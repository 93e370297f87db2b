"""reproduce.py: the rule of a verdict on made-up numbers, and every claim from end to end on noise."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

import claims
import config
import controls
import experiments
import plots
import reproduce
import verdicts
from utils import BadInput, read_lines
from verdicts import Effect


@pytest.mark.parametrize(
    ("late", "cut", "word"),
    [
        ((0.9, 0.8, 1.0), (-0.1, -0.3, 0.1), "holds"),
        ((0.9, 0.8, 1.0), (0.3, 0.0, 0.6), "holds in part"),
        ((0.5, 0.4, 0.6), (-0.5, -0.6, -0.4), "holds in part"),
        ((-0.2, -0.3, -0.1), (-0.5, -0.6, -0.4), "does not hold"),
        ((0.9, 0.8, 1.0), (0.8, 0.7, 0.9), "holds in part"),
    ],
)
def test_the_path_explains_a_gain_that_is_late_with_it_and_not_without(late, cut, word):
    assert controls.gain_verdict(Effect(*late), Effect(*cut), 4.5) == word


def test_an_effect_is_the_mean_with_students_interval():
    found = verdicts.effect([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.high - found.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert verdicts.effect([1.0]) == Effect(1.0, -math.inf, math.inf)


def test_a_centroid_of_nothing_leaves_a_claim_undecided():
    """A layer without information has no centroid."""
    found = verdicts.effect([1.0, math.nan])
    assert verdicts.verdict([verdicts.beyond(found, 0.5)]) == "undecided"
    assert verdicts.spread([1.0, math.nan]) == "nan ± nan"


def test_a_verdict_is_of_intervals_not_of_means():
    assert verdicts.beyond(Effect(1, 0.6, 1.4), 0.5) is True
    assert verdicts.beyond(Effect(1, 0.4, 1.6), 0.5) is None
    assert verdicts.beyond(Effect(0.1, -0.1, 0.3), 0.5) is False
    assert verdicts.within(Effect(-0.1, -0.3, 0.1), 0.5) is True
    assert verdicts.within(Effect(-0.4, -0.6, -0.2), 0.5) is None
    assert verdicts.within(Effect(-0.8, -0.9, -0.6), 0.5) is False
    assert verdicts.verdict([True, True]) == "holds"
    assert verdicts.verdict([True, False]) == verdicts.verdict([None, True]) == "holds in part"
    assert verdicts.verdict([False, None]) == "does not hold"
    assert verdicts.verdict([None, None]) == "undecided"


def test_rank_correlation_is_of_ranks():
    assert verdicts.rank_correlation([1.0, 2.0, 30.0], [0.1, 0.2, 0.9]).mean == pytest.approx(1)
    assert verdicts.rank_correlation([1.0, 2.0, 30.0], [5.0, 0.2, 0.9]) == pytest.approx((-0.5, -1, 1))
    assert verdicts.rank_correlation([1.0, 2.0, 3.0], [0.0, 0.0, 7.0]).mean == pytest.approx(0.75**0.5)
    assert math.isnan(verdicts.rank_correlation([1.0, 2.0, 3.0], [0.0, 1.0, math.nan]).mean)


def test_the_interval_of_a_rank_correlation_covers_none_as_often_as_it_says():
    drawn = torch.randn(400, 2, 20, generator=torch.Generator().manual_seed(0)).tolist()
    found = [verdicts.rank_correlation(*pair) for pair in drawn]
    assert 0.92 < sum(low < 0 < high for _, low, high in found) / len(found) < 0.98
    found = verdicts.rank_correlation(list(range(10)), [1, 0, 3, 2, 5, 4, 7, 6, 9, 8])
    assert found == pytest.approx((0.9394, 0.6877, 0.9895), abs=1e-4)


def test_the_mean_gradient_is_what_spread_does_not_explain_of_a_batch_mean():
    slope = torch.tensor([0.3, 0.0, 0.4])
    gradients = slope + torch.randn(4000, 10, 3, generator=torch.Generator().manual_seed(0))  # batches of 10 samples
    fisher, released = gradients.square().sum(2).mean(), gradients.mean(1).square().sum(1).mean()
    (norm,), (share,) = controls.mean_gradient([fisher], [released], 10, 40000)
    assert norm == pytest.approx(0.25, rel=0.05)
    assert share == pytest.approx(0.9 * 0.25 / (0.25 + 3 / 10), abs=0.02)


def test_a_batch_of_all_samples_but_one_has_their_mean_gradient_alone():
    """Batches without replacement: exact over all subsets."""
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [g[[i for i in range(4) if i != left]].mean(0).square().sum() for left in range(4)]
    found, share = controls.mean_gradient([g.square().sum(1).mean()], [sum(batches) / 4], 3, 4)
    torch.testing.assert_close(found[0], g.mean(0).square().sum())
    assert share[0] == pytest.approx((1 - 1 / 9) * found[0] / (sum(batches) / 4))


def test_a_cost_or_a_loss_that_the_seeds_do_not_settle_is_undecided():
    numbers = losses(4.0, 0.99, 0.4)
    numbers["step", "other"]["clean"] = [0.96, 1.02]
    assert claims.loss_verdict(numbers, "step")[0] == "undecided"
    accuracies = {("full", 4): [0.98, 0.98, 0.98], ("fisher", 4): [0.98, 0.96, 1.0]}  # the mean loses nothing
    assert claims.pruning_verdict(accuracies, {"full": [1, 1, 1], "fisher": [1, 1, 1]})[0] == "does not hold"
    assert claims.pruning_verdict(accuracies, {"full": [9, 9, 9], "fisher": [1, 1, 1]})[0] == "holds in part"


def test_accuracy_dates_what_is_known_from_a_timestep_on():
    assert controls.dated([0.1, 0.1, 0.9, 0.9], 0.1) == pytest.approx(3)
    assert controls.dated([0.5, 0.9, 0.9], 0.1) == pytest.approx(1.5)
    assert math.isnan(controls.dated([0.1, 0.3, 0.1], 0.1))


def losses(ic, clean, pgd):
    """Numbers of three losses, two seeds each, the others relative to ce."""
    rows = {"ce": (1.0, 0.99, 0.2), "other": (ic, clean, pgd), "dear": (7.0, 0.8, 0.9)}
    keys = ("ic", "clean", "pgd", "timestep")
    return {("step", name): {k: [v, v + 0.001] for k, v in zip(keys, (*row, 8))} for name, row in rows.items()}


@pytest.mark.parametrize(
    ("ic", "clean", "pgd", "word"),
    [
        (4.0, 0.99, 0.4, "holds"),
        (4.0, 0.99, 0.1, "holds"),
        (4.0, 0.99, 0.2, "holds in part"),
        (1.1, 0.99, 0.2, "does not hold"),
        (4.0, 0.97, 0.4, "does not hold"),
    ],
)
def test_a_loss_has_to_move_the_information_and_the_robustness_at_little_cost(ic, clean, pgd, word):
    assert claims.loss_verdict(losses(ic, clean, pgd), "step")[0] == word


@pytest.mark.parametrize(
    ("accuracy", "seconds", "word"),
    [(0.98, 50, "holds"), (0.97, 50, "holds in part"), (0.98, 90, "holds in part"), (0.98, 10, "holds")],
)
def test_a_search_has_to_be_as_good_at_every_sparsity_and_faster(accuracy, seconds, word):
    accuracies = {("full", 4): [0.981, 0.982], ("fisher", 4): [0.981, 0.982], ("full", 8): [0.981, 0.982]}
    accuracies["fisher", 8] = [accuracy, accuracy + 0.001]
    found = claims.pruning_verdict(accuracies, {"full": [100, 101], "fisher": [seconds, seconds + 1]})
    assert found[0] == word


DRY = experiments.SCALES["dry"]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files: rendering takes longer than the runs."""

    def touch(figure, path):
        path.touch()
        return path

    monkeypatch.setattr(plots, "write", touch)


def test_panels_and_scatters_are_drawn(tmp_path):
    drawn = plots.panels({"one": {"a": ([1, 2], [0.2, 0.8], [0.1, 0.1])}}, tmp_path / "p.png", "x", "y")
    assert drawn.stat().st_size > 1000
    numbers = {("step", name): {"ic": [1.0, 2.0], "clean": [0.9, 0.8]} for name in ("ce", "tet")}
    assert plots.tradeoff(numbers, tmp_path / "t.png", {"clean": "accuracy"}).stat().st_size > 1000


def test_every_claim_runs_from_end_to_end(undrawn, capsys):
    for claim in ("all", "gain"):
        reproduce.main([claim, "--dry_run", "--jobs", "1"])
    shown = capsys.readouterr().out
    for claim in reproduce.CLAIMS:
        assert f"{claim}: " in shown and f"{claim}.md" in shown


def test_a_command_names_no_place_and_its_run_gets_them():
    """A folder that is spelled in another way is the same folder: what is complete there is not run again."""
    args = SimpleNamespace(scale="medium", data_dir="here", out_dir="SEED/RUNS")
    job = experiments.evaluation(args, "pgd", "trained", "--eps", "4").of(0, 1)
    networks = ["RUNS/trained_0/checkpoint_latest.pt", "RUNS/trained_1/checkpoint_latest.pt"]
    assert job.flags == ("--checkpoints", *networks, "--data_dir", "DATA", "--eps", "4")
    networks = [f"SEED/{network}" for network in networks]
    flags = ["--checkpoints", *networks, "--data_dir", "here", "--eps", "4"]
    assert job.argv(args) == [*flags, "--out_dir", "SEED/RUNS", "--exp_name", "pgd", "--resume"]
    assert "here" not in job.content() and "RUNS/trained_0" in job.words()


def test_a_signal_ends_its_workers_too(tmp_path):
    command = [sys.executable, ROOT / "reproduce.py", "concentration", "--jobs", "2", "--out_dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--results", str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    epochs = []  # of each run; before the first there is nothing to save
    while process.poll() is None and (len(epochs) < 2 or min(epochs) < 1):
        time.sleep(0.1)
        epochs = [len(read_lines(path)) - 1 for path in tmp_path.glob("small/trained_*/log.jsonl")]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "reproduce.py: stopped\n" and process.returncode == 130
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert len(list(tmp_path.glob("small/trained_*/checkpoint_latest.pt"))) == 2
    assert not (tmp_path / "small" / "trained_2").exists()


def test_runs_that_are_complete_are_not_run_again(undrawn, tmp_path, capsys, monkeypatch):
    argv = ["loss", "--seeds", "1", "--out_dir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(experiments, "SCALES", {"small": DRY})
    monkeypatch.setattr(claims, "NORMS", ("step",))
    reproduce.main(argv)
    times = {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")}
    page = (tmp_path / "results" / "small" / "loss.md").read_text()
    reproduce.main(argv)
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")}
    assert page == (tmp_path / "results" / "small" / "loss.md").read_text() and "| step | tet |" in page
    for flags in ([], ["--loss", "prefix"]):  # a folder of another run is not taken for it
        monkeypatch.setattr(experiments, "SCALES", {"small": replace(DRY, losses={"ce": [], "tet": flags})})
        with pytest.raises(BadInput, match=r"loss_step_tet_0 is of another command line"):
            reproduce.main(argv)


@pytest.mark.parametrize("scale", ["small", "images", "medium", "paper"])
def test_every_command_line_of_every_scale_is_taken(scale, monkeypatch, tmp_path):
    """Trainings and searches; what follows them needs their checkpoints."""
    jobs = []

    def note(args, wanted):
        jobs.extend(wanted.values())
        raise InterruptedError

    for module in (experiments, claims, controls):
        monkeypatch.setattr(module, "with_each_seed", note)
    monkeypatch.setattr(claims, "with_all_seeds", note)
    args = SimpleNamespace(scale=scale, data_dir="here", out_dir=str(tmp_path), seeds=1)
    for claim in reproduce.CLAIMS.values():
        with contextlib.suppress(InterruptedError):
            claim(args)
    for module in (experiments, claims):
        monkeypatch.setattr(module, "trained", lambda args: [tmp_path])
    for claim in (claims.settings, controls.planted):
        with contextlib.suppress(InterruptedError):
            claim(args)
    assert len({job.name for job in jobs}) > 25
    for job in jobs:
        config.parse(job.script, job.of(0).argv(args))
