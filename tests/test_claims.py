"""The claims: effects, verdicts, and pages of made-up run folders."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

import reproduce
from claims import CLAIMS, common, law, pages, released
from claims.runs import Study
from claims.scales import SCALES
from utils import BadInput


def test_a_condition_is_judged_by_its_whole_interval():
    def words(bounds, *intervals):
        verdicts = []
        for low, high in intervals:
            half = (high - low) / 2 / 12.7062  # by Student's t of two seeds
            seeds = [(low + high) / 2 - half, (low + high) / 2 + half]
            verdicts.append(common.condition("x", seeds, 0, *bounds).verdict)
        return verdicts

    order = ["confirmed", "undecided", "contradicted"]
    assert words((0.5, math.inf), (0.6, 1.4), (0.4, 1.6), (0.1, 0.3)) == order
    assert words((-math.inf, 0.5), (0.1, 0.3), (0.4, 1.6), (0.6, 1.4)) == order
    assert words((-0.5, 0.5), (-0.3, 0.1), (-0.6, -0.2), (-2, -0.6)) == order


def test_an_effect_has_students_interval():
    effect = common.difference([1.0, 2.0, 3.0, 4.0, 5.0], 0)
    assert effect.mean == 3
    assert effect.high - effect.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert common.difference([1.0], 0)[1:] == (-math.inf, math.inf)


def test_what_a_seed_does_not_have_leaves_a_condition_undecided():
    condition = common.condition("x", [1.0, None], 0, low=0.5)
    assert condition.verdict == "undecided"
    assert pages.spread([1.0, None]) == "nan ± nan"


def test_the_share_of_the_slope_is_exact_over_all_batches_without_replacement():
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = [g[[i for i in range(4) if i != left]].mean(0).square().sum() for left in range(4)]
    estimate, slope = np.mean(means), g.mean(0).square().sum()
    share = released.slope_share([g.square().sum(1).mean()], [estimate], 3, 4)
    assert share[0] == pytest.approx((1 - 1 / 9) * slope / estimate)


# ---------------------------------------------------------------- pages of made-up run folders


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def measurement(epoch, ic, split, labels):
    """A line of fisher.jsonl, T = 2, whose curves are 1 at t = 1 and depend on `ic` at t = 2."""
    curves = {"fisher": [1, ic], "gain": [1, ic], "prefix_residual": [1, 0.5],
              "prefix_loss": [1, 0.5], "prefix_accuracy": [0.5, 0.9], "layers": {"a": [1, ic]},
              "layers_scale_free": {"a": [1, 1], "b": [0, ic]}}  # fmt: skip
    numbers = {"ic": ic, "ic_per_loss": ic, "ic_per_residual": ic, "timestep": 2, "samples": 100}
    return {"epoch": epoch, "split": split, "labels": labels} | curves | numbers


def make_up(study, run):
    """Write a run folder. IC is 5 in epoch 1, at the end 2 with seed 0 and 2.2 with seed 1. A
    corrupted first half costs 0.1 more. The search `fisher` is three times as fast."""
    folder, seed = study.folder(run), int(run.name.endswith("_1"))
    kinds = list(product(("train", "test"), ("data", "model", "exact")))
    lines = [measurement(epoch, ic, *kind)
             for epoch, ic in enumerate((9, 5, 2 + seed / 5)) for kind in kinds]  # fmt: skip
    write_lines(folder / "fisher.jsonl", lines)
    write_lines(folder / "log.jsonl", [{"train_loss": 0.5, "test_accuracy": 0.9}])
    noise = [("gaussian_noise", 0.2), ("gaussian_noise", 0.4)]
    threats = [("clean", 0), *noise, ("blur", 1), ("pgd", 32)]
    attacked = 0.7 if "first" in run.name else 0.8
    lines = [{"checkpoint": f"x/{network}/c.pt", "threat": threat, "strength": strength,
              "times": [1] if strength else [], "attacked": attacked, "transfer": None}
             for network, (threat, strength) in product(run.networks, threats)]  # fmt: skip
    write_lines(folder / "robustness.jsonl", lines)
    few = "fisher" in run.name
    line = {"search": "x", "seconds": 10 if few else 30, "rule_seconds": 0, "timestep": 4}
    lines = [line | {"stage": stage, "round": number, "sparsity": 0.5, "test_accuracy": 0.9 + few}
             for stage, number in product(("search", "final"), (0, 1))]  # fmt: skip
    write_lines(folder / "pruning.jsonl", lines)


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A function: the numbers of a claim, by way of JSON, from made-up run folders."""
    monkeypatch.setattr(law, "predict", lambda study, run: {"a": [1.0, 2.0]})
    study = Study(SCALES["dry"], 2, 1, tmp_path / "runs", None)

    def numbers(name):
        runs = CLAIMS[name].runs(study)
        for run in [run for group in runs.values() for run in group]:
            make_up(study, run)
        folders = {key: [study.folder(run) for run in group] for key, group in runs.items()}
        return json.loads(json.dumps(CLAIMS[name].numbers(study, folders)))

    return numbers


@pytest.mark.parametrize("name", CLAIMS)
def test_page_and_figure_are_drawn_again_from_the_numbers(name, made_up, tmp_path, capsys):
    (tmp_path / "small").mkdir()
    record = {"numbers": made_up(name), "runs": ["x.py"], "seeds": 2, "git": "0",
              "command": "python reproduce.py", "versions": {}, "device": "cpu"}  # fmt: skip
    pages.write_numbers(tmp_path / "small" / f"{name}.json", record)
    reproduce.main([name, "--redraw", "--results", str(tmp_path)])
    page = (tmp_path / "small" / f"{name}.md").read_text()
    title, question, *_ = pages.words_of(CLAIMS[name])
    assert page.startswith(f"# Claim: {title}\n\n{question} ")
    verdicts = capsys.readouterr().out.splitlines()[1:-1]
    assert all(f"| {line[15:]} |" in page for line in verdicts)
    assert (tmp_path / "small" / f"{name}.png").stat().st_size > 1000


def test_nothing_is_drawn_again_without_sound_numbers(tmp_path):
    with pytest.raises(BadInput, match="run the claim without --redraw"):
        reproduce.main(["gain", "--redraw", "--results", str(tmp_path)])
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "gain.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged: restore it"):
        reproduce.main(["gain", "--redraw", "--results", str(tmp_path)])


def test_a_control_has_its_own_curve(made_up):
    curves = made_up("controls")
    assert curves["as in the paper"] == [[1, 2], [1, 2.2]]
    assert curves["per residual: the gain (I_t / R_t)"] == [[1, 4], [1, 4.4]]
    assert curves["each layer times its squared weights"] == [[1, 3], [1, 3.2]]


@pytest.fixture
def conditions_of(made_up, tmp_path):
    """A function: {words: (mean effect, verdict)} of the conditions of a claim."""

    def conditions(name):
        page = CLAIMS[name].page(made_up(name), tmp_path / "figure.png")
        return {words: (effect.mean, verdict) for words, effect, verdict in page.conditions}

    return conditions


def test_a_concentration_is_from_the_first_epoch_after_training_began_to_the_last(conditions_of):
    falls, early = conditions_of("concentration").items()
    assert falls == ("the network: IC falls by more than 0.167", (pytest.approx(2.9), "confirmed"))
    assert early[0] == "the network: IC ends below flat (1.5) by more than 0.167"
    assert early[1] == (pytest.approx(-0.6), "undecided")  # [-1.87, 0.67]


def test_noise_hurts_early_if_the_first_half_costs_more(conditions_of):
    assert list(conditions_of("robustness").values()) == [(pytest.approx(0.1), "confirmed")] * 2


def test_a_search_is_compared_with_the_full_one_seed_by_seed(conditions_of):
    accuracy, *_, speed = conditions_of("pruning").values()
    assert accuracy == (pytest.approx(-1), "confirmed")
    assert speed == (3, "confirmed")
