"""The main claim on real input, in a short recipe: information moves to the early timesteps."""

from helpers import lines, run


def test_information_concentrates_early_on_the_digits(undrawn, tmp_path):
    argv = ["--dataset", "digits", "--epochs", "12", "--fisher_epochs", "0", "2", "12",
            "--fisher_samples", "128"]  # fmt: skip
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    before, early, late = (line["ic"] for line in lines(folder, "fisher.jsonl"))
    assert abs(before - 4.5) < 0.1 and early > 4.5 and late < 3.5
    assert lines(folder, "log.jsonl")[-1]["test_accuracy"] > 0.95
