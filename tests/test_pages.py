"""The pages of reproduce.py: the rules of their verdicts, and every number, of made-up measurements."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import claims
import config
import controls
import verdicts
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
    assert found.mean == 3 and found.high - found.mean == pytest.approx(
        2.776445 * math.sqrt(2.5 / 5)
    )
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
    assert verdicts.rank_correlation([1.0, 2.0, 30.0], [5.0, 0.2, 0.9]) == pytest.approx(
        (-0.5, -1, 1)
    )
    assert verdicts.rank_correlation([1.0, 2.0, 3.0], [0.0, 0.0, 7.0]).mean == pytest.approx(
        0.75**0.5
    )
    assert math.isnan(verdicts.rank_correlation([1.0, 2.0, 3.0], [0.0, 1.0, math.nan]).mean)


def test_the_interval_of_a_rank_correlation_covers_none_as_often_as_it_says():
    drawn = torch.randn(400, 2, 20, generator=torch.Generator().manual_seed(0)).tolist()
    found = [verdicts.rank_correlation(*pair) for pair in drawn]
    assert 0.92 < sum(low < 0 < high for _, low, high in found) / len(found) < 0.98
    found = verdicts.rank_correlation(list(range(10)), [1, 0, 3, 2, 5, 4, 7, 6, 9, 8])
    assert found == pytest.approx((0.9394, 0.6877, 0.9895), abs=1e-4)


def test_the_mean_gradient_is_what_spread_does_not_explain_of_a_batch_mean():
    slope = torch.tensor([0.3, 0.0, 0.4])
    gradients = slope + torch.randn(
        4000, 10, 3, generator=torch.Generator().manual_seed(0)
    )  # batches of 10 samples
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
    accuracies = {
        ("full", 4): [0.98, 0.98, 0.98],
        ("fisher", 4): [0.98, 0.96, 1.0],
    }  # the mean loses nothing
    assert (
        claims.pruning_verdict(accuracies, {"full": [1, 1, 1], "fisher": [1, 1, 1]})[0]
        == "does not hold"
    )
    assert (
        claims.pruning_verdict(accuracies, {"full": [9, 9, 9], "fisher": [1, 1, 1]})[0]
        == "holds in part"
    )


def test_accuracy_dates_what_is_known_from_a_timestep_on():
    assert controls.dated([0.1, 0.1, 0.9, 0.9], 0.1) == pytest.approx(3)
    assert controls.dated([0.5, 0.9, 0.9], 0.1) == pytest.approx(1.5)
    assert math.isnan(controls.dated([0.1, 0.3, 0.1], 0.1))


def losses(ic, clean, pgd):
    """Numbers of three losses, two seeds each, the others relative to ce."""
    rows = {"ce": (1.0, 0.99, 0.2), "other": (ic, clean, pgd), "dear": (7.0, 0.8, 0.9)}
    keys = ("ic", "clean", "pgd", "timestep")
    return {
        ("step", name): {k: [v, v + 0.001] for k, v in zip(keys, (*row, 8))}
        for name, row in rows.items()
    }


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
    [
        (0.98, 50, "holds"),
        (0.97, 50, "holds in part"),
        (0.98, 90, "holds in part"),
        (0.98, 10, "holds"),
    ],
)
def test_a_search_has_to_be_as_good_at_every_sparsity_and_faster(accuracy, seconds, word):
    accuracies = {
        ("full", 4): [0.981, 0.982],
        ("fisher", 4): [0.981, 0.982],
        ("full", 8): [0.981, 0.982],
    }
    accuracies["fisher", 8] = [accuracy, accuracy + 0.001]
    found = claims.pruning_verdict(
        accuracies, {"full": [100, 101], "fisher": [seconds, seconds + 1]}
    )
    assert found[0] == word


# ---------------------------------------------------------------- pages of made-up measurements


def centre(last):
    """The centroid of a curve [1, last]."""
    return (1 + 2 * last) / (1 + last)


def measured(folder, ics, **args):
    """A run folder of made-up measurements, T = 2: {(epoch, split, labels): IC}, the other quantities that and a bit,
    curves 1 at t = 1; `args` are flags of the run."""
    folder.mkdir(exist_ok=True)
    lines = [{"epoch": e, "split": split, "labels": labels, "timestep": 2, "samples": 100, "ic": ic,
              "ic_per_loss": ic + 0.1, "ic_per_residual": ic + 0.2, "fisher": [1, ic], "prefix_residual": [1, ic + 1],
              "layers": {"a": [1, ic + 2]}, "prefix_loss": [1, ic + 3], "gain": [1, ic + 4],
              "layers_scale_free": {"a": [1, 1], "b": [0, ic + 5]}, "prefix_accuracy": [0.2, 0.1 + ic / 10]}
             for (e, split, labels), ic in ics.items()]  # fmt: skip
    log = {"train_loss": 0.5, "test_accuracy": 0.9, "train_accuracy": 0.8}
    write_lines(folder / "fisher.jsonl", lines)
    write_lines(folder / "log.jsonl", [log])
    (folder / "args.json").write_text(json.dumps({"args": {"dataset": "x"} | args}))
    return folder


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


KINDS = {(0, "train", "data"): 9.0, (1, "train", "data"): 5.0, (1, "train", "model"): 6.0, (1, "test", "data"): 9.0,
         (2, "train", "data"): 2.0, (2, "train", "model"): 3.0, (2, "test", "data"): 8.0}  # fmt: skip


def numbers(row):
    """The means in the cells of a row of a table, but for its first."""
    return [float(cell.split()[0].rstrip(",")) for cell in row.strip("| ").split(" | ")[1:]]


def test_information_concentrates_if_it_falls_and_ends_below_flat():
    ends = (
        ([5.0, 5.1], [1.0, 1.1]),
        ([1.2, 1.21], [1.2, 1.21]),
        ([8.0, 8.01], [6.0, 6.01]),
        ([2.0, 2.01], [6.0, 6.01]),
    )
    words = [claims.concentrates(*both, 4.5)[0] for both in ends]
    assert words == ["holds", "holds in part", "holds in part", "does not hold"]


def test_the_measurements_of_a_kind_are_those_after_the_start(tmp_path):
    found = verdicts.measurements(measured(tmp_path, KINDS))
    assert [(line["epoch"], line["ic"]) for line in found] == [(1, 5), (2, 2)]
    assert [line["ic"] for line in verdicts.measurements(tmp_path, labels="model")] == [6, 3]
    assert [line["ic"] for line in verdicts.measurements(tmp_path, "test")] == [9, 8]


def test_curves_are_divided_and_shared_out():
    line = {"fisher": [2.0, 6.0], "layers": {"a": [1.0, 4.0]}, "loss": [1.0, 2.0]}
    assert verdicts.divided(line, "loss") == [2, 3] and verdicts.divided(line, "loss", "a") == [
        1,
        2,
    ]
    assert verdicts.by_t([[1.0, 3.0], [30.0, 10.0]])[:2] == ([1, 2], [0.5, 0.5])
    assert verdicts.ended([1.5, 1.5], 4.5) == ["1.50 ± 0.00", "+3.00 [+3.00, +3.00]"]
    assert verdicts.least_move(4.5) == 0.5


def test_the_page_of_concentration_has_the_first_and_the_last_measurement(
    undrawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(claims, "trained", lambda args: [measured(tmp_path, {
        kind: ic for kind, ic in KINDS.items()})] * 2)  # fmt: skip
    found, (_, centroids, _), _ = claims.concentration(SimpleNamespace(results=tmp_path))
    first, last = (numbers(row) for row in centroids.splitlines()[2:])
    assert first == pytest.approx([5, 13 / 7, 5.2, 5.1], abs=0.006) and last == [2, 1.75, 2.2, 2.1]
    assert (
        found["IC"][1]
        == "IC falls by +3.00 [+3.00, +3.00] and ends -0.50 [-0.50, -0.50] below flat (1.5)."
    )


def test_the_page_of_settings_has_the_first_and_the_last_measurement(
    undrawn, tmp_path, monkeypatch
):
    own = [measured(tmp_path, KINDS)] * 2
    monkeypatch.setattr(
        claims, "settings_runs", lambda args, other_data: {"as it is": own, "b": own}
    )
    row = claims.settings(SimpleNamespace(results=tmp_path))[1][0].splitlines()[2]
    expected = [1.5, 5, 2, 1.75, 2.1, -0.6, 2.2, 3, -0.7, 3, -1.5, 3.2, -1.7, 0.5, 0.9]
    assert numbers(row) == pytest.approx(expected)


def test_the_page_of_layers_has_each_layers_own_curve_and_gain(undrawn, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "trained", lambda args: [measured(tmp_path / "a", KINDS)] * 2)
    cut = [measured(tmp_path / "b", {(2, "train", "data"): 1.0})] * 2
    monkeypatch.setattr(claims, "measured_again", lambda args, which: {which: cut})
    row = claims.layers(SimpleNamespace(results=tmp_path))[1][0].splitlines()[2]
    own, less = (1 + 2 * 4 / 3) / (1 + 4 / 3), (1 + 2 * 3 / 2) / (1 + 3 / 2)
    assert numbers(row) == pytest.approx(
        [15 / 8, 9 / 5, 5 / 3, own, 1.5 - own, less, 1.5 - less], abs=0.006
    )


def test_noise_hurts_early_if_accuracy_is_higher_with_the_last_half_corrupted(
    undrawn, tmp_path, monkeypatch
):
    attacked, jobs = {"first half": 0.5, "last half": 0.7, "all": 0.1}, {}

    def evaluated(args, wanted):
        for name, job in wanted.items():
            jobs[name] = [
                int(flag)
                for flag in job.flags[job.flags.index("--noisetime") + 1 :]
                if flag.isdigit()
            ]
            lines = [{"times": [1], "threat": threat, "strength": strength, "checkpoint": seed, "accuracy": [0, 0],
                      "attacked": attacked[name]}
                     for threat, strength in (("gaussian_noise", 0.4), ("blur", 1.0)) for seed in "ab"]  # fmt: skip
            write_lines(tmp_path / name / "robustness.jsonl", lines)
        return {name: tmp_path / name for name in wanted}

    monkeypatch.setattr(claims, "trained", lambda args: [tmp_path])
    monkeypatch.setattr(claims, "load_checkpoint", lambda path: {"args": {"timestep": 5}})
    monkeypatch.setattr(claims, "with_all_seeds", evaluated)
    found = claims.robustness(SimpleNamespace(results=tmp_path, scale="paper", data_dir=None))[0]
    assert jobs == {"first half": [1, 2], "last half": [4, 5], "all": [1, 2, 3, 4, 5]}
    assert [word for word, _ in found.values()] == ["holds", "holds"] and "+0.200" in found[
        "blur 1.0"
    ][1]
    attacked |= {"first half": 0.7}  # as much
    tmp_path = tmp_path / "again"
    tmp_path.mkdir()
    found = claims.robustness(SimpleNamespace(results=tmp_path, scale="paper", data_dir=None))[0]
    assert [word for word, _ in found.values()] == ["does not hold"] * 2


def test_the_page_of_pruning_has_the_accuracy_of_the_finals_and_the_seconds_to_the_last(
    undrawn, tmp_path, monkeypatch
):
    for search, seconds, more in (("full", 30, 0), ("fisher", 10, 0.02)):
        rounds = [("search", 0), ("search", 1), ("final", 1), ("final", 2)]
        lines = [dict(search=search, stage=stage, round=r, seconds=seconds, rule_seconds=0, sparsity=r / 10, timestep=4,
                      test_accuracy=0.9 - r / 10 + r * more, prefix_accuracy=[0.1, 0.2])
                 for stage, r in rounds]  # fmt: skip
        write_lines(tmp_path / search / "pruning.jsonl", lines)
    monkeypatch.setattr(
        claims, "with_each_seed", lambda args, jobs: {name: [tmp_path / name] * 2 for name in jobs}
    )
    found, (page, against), _ = claims.pruning(
        SimpleNamespace(results=tmp_path, scale="dry", data_dir=None)
    )
    assert found["all sparsities"][0] == "holds"
    assert [numbers(row) for row in page.splitlines()[2:]] == [
        [0.8, 0.7, 4, 60, 1],
        [0.82, 0.74, 4, 20, 3],
    ]
    assert "`fisher` +0.020 [+0.020, +0.020], +0.040 [+0.040, +0.040]." in against


def test_the_page_of_gain_is_of_networks_measured_again_with_and_without_the_path(
    undrawn, tmp_path, monkeypatch
):
    """Also of one that was trained, and measured meanwhile, without it."""
    ways = {"as it is": 2.0, "cut": 1.0, "instant": 3.0, "instant, cut": 4.0}
    own = [measured(tmp_path / "s_0", {(2, "train", "data"): 9.0})] * 2
    monkeypatch.setattr(controls, "settings_runs", lambda args, other_data: {"s": own})
    monkeypatch.setattr(controls, "with_each_seed", lambda args, jobs: {
        key: [measured(tmp_path / key[1], {(2, "train", "data"): ways[key[1]]})] * 2 for key in jobs})  # fmt: skip
    found, (page,), _ = controls.gain(SimpleNamespace(results=tmp_path, scale="dry", data_dir=None))
    assert numbers(page.splitlines()[2]) == pytest.approx(
        [1.5, 2, 1, 2.2, 0.7, 1.2, -0.3, 3.2, 1.7, 4.2, 2.7]
    )
    assert found["s"][0] == "holds"


def test_the_page_of_controls_has_each_control_of_the_last_measurements(
    undrawn, tmp_path, monkeypatch
):
    every = {
        ("train", "data"): 2.0,
        ("train", "exact"): 3.0,
        ("test", "data"): 8.0,
        ("test", "exact"): 5.0,
    }
    every = {
        (epoch, *kind): ic + 20 * (2 - epoch) for epoch in (1, 2) for kind, ic in every.items()
    }
    ends = {"instantaneous outputs": 1.0, controls.NO_MEMBRANES: 4.0, controls.RELEASED: 6.0}
    ways = {controls.EVERY_CLASS: every} | {
        way: {(2, "train", "data"): ic} for way, ic in ends.items()
    }
    flags = dict(fisher_batch=10, batch_size=64)
    again = {way: [measured(tmp_path / way, ics, **flags)] * 2 for way, ics in ways.items()}
    shown, kinds = (
        measured(tmp_path / "shown", KINDS),
        (("train", "data"), ("train", "model"), ("test", "data")),
    )
    kinds = {kind: verdicts.measurements(shown, *kind)[-1:] * 2 for kind in kinds}
    monkeypatch.setattr(controls, "trained", lambda args: None)
    monkeypatch.setattr(controls, "measured_again", lambda args: dict(again))
    monkeypatch.setattr(controls, "planted", lambda args: {(1,): kinds, (1, 2): kinds})
    found, (table, shares, lower, dates), _ = controls.controls(SimpleNamespace(results=tmp_path))
    ends = [2, 8, 2 / 5, 2 / 3, 6, 3, 3 / 4, 8, 5, 1, 4, 4 / 5, 6]
    expected = [[centre(end), 1.5 - centre(end)] for end in ends]
    rows = [numbers(row) for row in table.splitlines()[2:]]
    assert len(rows) == len(expected) and all(
        row == pytest.approx(e, abs=0.006) for row, e in zip(rows, expected)
    )
    (_, slope), (_, share) = controls.mean_gradient([1, 2], [1, 6], 10, 100)
    assert numbers(shares.splitlines()[2])[1] == pytest.approx(share, abs=6e-4)
    assert numbers(shares.splitlines()[3])[1] == pytest.approx(slope / 2, abs=6e-4)
    assert f"is {verdicts.effect([centre(2) - centre(6)] * 2)} below" in lower
    row = numbers(dates.splitlines()[2])
    assert row[:6] == pytest.approx([2, 1, 8, 3, 2.1, 2.2])
    assert row[6] == pytest.approx(controls.dated([0.2, 0.9], 1 / controls.FAKE_CLASSES), abs=0.006)
    assert numbers(dates.splitlines()[3])[1] == 0.5
    assert found["class at 1 to 1"][0] == "does not hold" and "class at 1 to 2" not in found


def test_information_is_planted_at_the_timesteps_of_the_row(tmp_path, monkeypatch):
    ran = {}
    monkeypatch.setattr(controls, "with_each_seed", lambda args, jobs: ran.update(jobs) or {
        times: [measured(tmp_path / str(times[0]), KINDS)] for times in jobs})  # fmt: skip
    found = controls.planted(SimpleNamespace(scale="paper"))
    for times, job in ran.items():
        settings = config.parse(job.script, job.of(3).flags)
        assert (settings.dataset, settings.planted_time, settings.seed) == (
            "planted",
            list(times),
            3,
        )
    assert len(found) == 4 and {kind: line["ic"] for kind, (line,) in found[4, 5].items()} == {
        ("train", "data"): 2, ("train", "model"): 3, ("test", "data"): 8}  # fmt: skip


def test_the_numbers_of_a_loss_are_paired_by_seed(tmp_path, monkeypatch):
    keys = [(norm, name) for norm in claims.NORMS for name in ("ce", "tet")]

    def value(key, seed):
        return 0.1 + 0.4 * keys.index(key) / 4 + (0.2 if seed == 0 else 0)  # of the first seed more

    def trained(args, jobs):
        folders = {key: [tmp_path / f"{'_'.join(key)}_{seed}" for seed in (0, 1)] for key in jobs}
        for key, own in folders.items():
            for seed, folder in enumerate(own):
                measured(folder, {(2, "train", "data"): 10 * value(key, seed)})
                write_lines(
                    folder / "log.jsonl",
                    [{"test_accuracy": 0}, {"test_accuracy": 1 + value(key, seed)}],
                )
        return folders

    def evaluated(args, jobs):
        threats = [
            ("clean", 0, 5),
            ("gaussian_noise", 0.2, 2),
            ("pgd", 16, 6),
            ("pgd", 32, 3),
            ("unbounded", 255, 7),
        ]
        for key in jobs:
            lines = [{"checkpoint": f"runs/{'_'.join(key)}_{seed}/checkpoint_latest.pt", "threat": threat,
                      "strength": strength, "attacked": add + value(key, seed), "transfer": add + value(key, seed) + 1,
                      "masking": ["a sign"]}
                     for seed in (0, 1) for threat, strength, add in threats]  # fmt: skip
            write_lines(tmp_path / "_".join(key) / "robustness.jsonl", lines)
        return {key: tmp_path / "_".join(key) for key in jobs}

    monkeypatch.setattr(claims, "with_each_seed", trained)
    monkeypatch.setattr(claims, "with_all_seeds", evaluated)
    found = claims.loss_numbers(SimpleNamespace(scale="dry", data_dir=None))
    for key in keys:
        own = [value(key, seed) for seed in (0, 1)]
        for quantity, factor, add in (
            ("ic", 10, 0),
            ("clean", 1, 1),
            ("pgd", 1, 3),
            ("noise", 1, 2),
            ("transfer", 1, 4),
        ):
            assert found[key][quantity] == pytest.approx([factor * v + add for v in own]), quantity
        assert len(found[key]["masking"]) == 10
    assert claims.change(found, "folded", "tet", "pgd") == pytest.approx((0.1, 0.1, 0.1))


def test_a_loss_that_lowers_ic_is_judged_as_one_that_raises_it():
    numbers = losses(0.0, 0.99, 0.4)
    numbers["step", "other"]["ic"] = [-0.05, 0.051]  # 1 lower, with an interval from 0.36 to 1.64
    assert claims.loss_verdict(numbers, "step")[0] == "holds in part"
    numbers["step", "less"] = {
        key: [v + 0.5 * (key == "ic") for v in own] for key, own in numbers["step", "ce"].items()
    }
    assert "`other`" in claims.loss_verdict(numbers, "step")[1]
