"""The command line: every flag has an effect, and bad input is one line and exit status 2."""

import functools

import pytest
import torch
from helpers import TINY, TINY_FISHER, lines, run, start

import config
import train_snn
from parser import expand_epochs
from utils import BadInput

# fmt: off
# The flags of the run that others are compared with. CHECKPOINT stands for a trained network.
USUAL = {
    "train_snn": TINY,
    "train_snn_fisherinfo": TINY + TINY_FISHER,
    "prune_snn": [*TINY, "--rounds", "2", "--search_timestep", "full", "--rewind_epoch", "1"],
    "eval_snn_robustness": [
        "--checkpoints", "CHECKPOINT", "--attack_surrogate", "own", "--attack_steps", "2",
        "--eps", "4", "--noise_levels", "0.2", "--blur_levels", "1"],
}
# The last flag of a row is the one that is tried. The flags before it are given to both runs.
EFFECTS = {
    "train_snn": [],  # those of train_snn_fisherinfo, which has more
    "train_snn_fisherinfo": [
        "--dataset digits", "--fake_shape 1 10 10", "--dataset planted --planted_time 2",
        "--dataset planted --frames 4", "--datanum 64", "--label_corrupt_prob 0.5", "--encode p",
        "--standardise none",
        "--batch_size 50", "--seed 1", "--arch vgg5", "--width 0.2", "--layernum 3", "--timestep 3",
        "--layernum 3 --norm folded", "--tau 4", "--threshold 0.5", "--reset soft",
        "--surrogate triangle", "--surrogate_alpha 3", "--undecayed_input", "--undetached_reset",
        "--detach_membrane", "--epochs 3", "--optimizer adam", "--learning_rate 0.01",
        "--momentum 0.5", "--dampening 0.5", "--weight_decay 0.1", "--scheduler none",
        "--scheduler step --lr_step 1", "--scheduler step --lr_step 1 --lr_gamma 0.5",
        "--warmup_epochs 1", "--no_augment", "--test_samples 9", "--amp", "--init CHECKPOINT",
        "--save_epochs 1", "--noisetype blur", "--noisetype blur --noise_level 0.5",
        "--noisetype blur --noisetime 2", "--freqlevel low", "--freqlevel high --freq_radius 1",
        "--loss tet", "--loss tet --tet_lambda 0.5", "--loss prefix --prefix_time 2",
        "--loss prefix --prefix_weight 0.9", "--loss centroid --target_ic 1.8 --target_ic 1.2",
        "--label_smoothing 0.3", "--lossskiptime 1", "--loss_threshold 2.5", "--adv_train",
        "--adv_train --attack_method fgsm", "--adv_train --eps 2", "--adv_train --attack_steps 3",
        "--adv_train --attack_step_size 1", "--adv_train --attack_prefix 1",
        "--fisher_epochs 1", "--fisher_samples 5", "--fisher_split test", "--fisher_labels exact",
        "--fisher_prefix instant", "--fisher_batch 3 --fisher_estimator release",
        "--fisher_estimator release --fisher_batch 3 --fisher_batch 2"],
    "prune_snn": [
        "--search_timestep 1", "--rounds 1", "--final_rounds 1 2", "--prune_rate 0.5",
        "--rewind_epoch 0", "--search_timestep fisher --information_share 0.1"],
    "eval_snn_robustness": [
        "--attack_method pgd", "--eps 8", "--attack_steps 3", "--attack_step_size 1",
        "--attack_prefix 1", "--attack_surrogate atan:1", "--robust_samples 9", "--noisetime 1",
        "--noise_levels 0.4", "--blur_levels 2", "--detach_membrane", "--seed 1"],
}
# Flags that choose a file, a folder, memory or speed, or what the script does.
ELSEWHERE = {
    "data_dir", "data_file", "checkpoints", "compile", "checkpoint_activations", "resume",
    "device", "out_dir", "exp_name"}
# fmt: on
EVALUATE = "eval_snn_robustness --checkpoints CHECKPOINT"
pytestmark = pytest.mark.usefixtures("undrawn")
ROWS = [(script, row) for script, rows in EFFECTS.items() for row in rows]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The path of a network that is right about most samples."""
    folder = run(tmp_path_factory.mktemp("trained"), "--epochs", "8", "--no_augment")
    return str(folder / "checkpoint_latest.pt")


@pytest.fixture(scope="module")
def results(checkpoint, tmp_path_factory):
    """A function: what a run of `script` with these flags beside the usual ones computed."""

    @functools.cache
    def result(script, flags, number=1):
        usual = [word.replace("CHECKPOINT", checkpoint) for word in USUAL[script]]
        argv = flags.replace("CHECKPOINT", checkpoint).split()
        folder = run(tmp_path_factory.mktemp("run"), *argv, script=script, flags=usual)
        records = {path.name: lines(folder, path.name) for path in folder.glob("*.jsonl")}
        return records, sorted(path.name for path in folder.rglob("*"))

    return result


@pytest.mark.parametrize(("script", "row"), ROWS)
def test_every_flag_has_an_effect(script, row, results):
    without = row.rpartition("--")[0]
    assert results(script, row) != results(script, without)


@pytest.mark.parametrize("script", EFFECTS)
def test_the_same_flags_have_the_same_effect(script, results):
    assert results(script, "") == results(script, "", number=2)


@pytest.mark.parametrize("script", EFFECTS)
def test_the_effect_of_every_flag_is_tested(script):
    flags = config.make_parser(script).defaults
    tested = {row.rpartition("--")[2].split()[0] for _, row in ROWS}
    assert flags.keys() <= tested | ELSEWHERE


def test_the_release_is_the_default_and_small_data_sets_have_recipes():
    release = config.parse("train_snn", [])
    assert (release.arch, release.timestep, release.epochs) == ("resnet19", 10, 300)
    assert (release.weight_decay, release.dampening) == (0, 5e-4)
    digits = config.parse("train_snn", ["--dataset", "digits", "--timestep", "3"])
    assert (digits.arch, digits.timestep, digits.epochs) == ("vgg5", 3, 30)
    assert (digits.weight_decay, digits.dampening) == (5e-4, 0)


def test_flags_are_written_as_one_likes():
    argv = ["--batch-size=7", "--dataset", "Digits", "--arch", "VGG9", "--amp"]
    args = config.parse("train_snn", argv)
    assert (args.batch_size, args.dataset, args.arch, args.amp) == (7, "digits", "vgg9", "bf16")


def test_a_list_of_epochs_ends_with_the_last_epoch():
    assert expand_epochs(["0", "20", "120"], 30) == [0, 20, 30]
    assert expand_epochs(["0", "every:4"], 10) == [0, 4, 8, 10]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("--seed 3 --epochs 60 --data_dir /data", "digits_vgg5_T8_seed3"),
        ("--timestep 4 --tau 4 --detach_membrane", "digits_vgg5_T4_detach_membrane_tau4_seed0"),
        ("--noisetype blur --noisetime 1 2", "digits_vgg5_T8_noisetime-1-2_noisetype-blur_seed0"),
        ("--init runs/first/best.pt", "digits_vgg5_T8_init-best.pt_seed0"),
    ],
)
def test_the_run_folder_is_named_by_what_differs_from_the_recipe(command, name):
    args = config.parse("train_snn", ["--dataset", "digits", *command.split()])
    assert args.exp_name == name


def test_a_run_without_a_name_is_resumed_by_the_same_flags(tmp_path):
    flags = [*TINY, "--noisetype", "blur", "--device", "cpu", "--out_dir", str(tmp_path)]
    train_snn.main(flags)
    train_snn.main([*flags, "--resume"])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train_snn --timestp 4", "did you mean --timestep?"),
        ("train_snn --batch 4", "did you mean --batch_size?"),
        ("train_snn --arch resnet50", "did you mean resnet20?"),
        ("train_snn --optimizer adm", "did you mean adam?"),
        ("train_snn --timestep 0", "must be at least 1"),
        ("train_snn --tau 1", "must be above 1"),
        ("train_snn --tau inf --undecayed_input", "--tau inf has no decay"),
        ("train_snn --attack_steps 4", "only with --adv_train"),
        ("train_snn --noisetype blur --noisetime 11", "past --timestep 10"),
        ("train_snn --dataset planted --planted_time 9", "9 is past the 8 timesteps"),
        ("train_snn --dataset planted --frames 4", "--timestep 8 is past --frames 4"),
        ("train_snn --timestep 2 --lossskiptime 1 2", "skips all of the first 2"),
        ("train_snn --save_epochs 0", "--save_epochs"),
        ("train_snn_fisherinfo --epochs 5 --fisher_epochs 6", "past --epochs 5"),
        ("train_snn_fisherinfo --checkpoints CHECKPOINT --epochs 3", "leave out --epochs"),
        ("train_snn_fisherinfo --fisher_estimator release --fisher_samples 9", "two batches of 16"),
        ("prune_snn --noisetype blur --noisetime 1", "leave out --noisetime"),
        ("prune_snn --rounds 8 --final_rounds 3", "--rounds"),
        ("prune_snn --search_timestep kl --information_share 0.3", "only with --search_timestep f"),
        ("prune_snn --prune_rate 1", "must be at most 0.999"),
        ("train_snn --adv_train --attack_method fgsm --attack_steps 5", "only with pgd"),
        ("train_snn --dataset planted --frames 8", "--frames 8 is --timestep"),
        (f"{EVALUATE} --attack_method fgsm --attack_step_size 3", "is for --attack_method pgd"),
        (f"{EVALUATE} --noise_levels --blur_levels --noisetime 2", "--noisetime needs"),
        ("eval_snn_robustness --attack_surrogate atn:1", "did you mean atan?"),
        ("eval_snn_robustness --attack_surrogate atan:0", "must be above 0"),
        ("eval_snn_robustness --attack_surrogate atan:x", "invalid surrogate value"),
    ],
)
def test_bad_flags_are_refused(command, message, checkpoint):
    script, *argv = command.replace("CHECKPOINT", checkpoint).split()
    with pytest.raises(BadInput) as error:
        config.parse(script, argv)
    assert message in str(error.value)


def test_checkpoints_of_different_networks_are_measured_in_commands_of_their_own(tmp_path):
    for name, tau in (("a", 2.0), ("b", 4.0)):
        torch.save({"state_dict": {}, "args": {"tau": tau}}, tmp_path / name)
    argv = ["--checkpoints", str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(BadInput, match=r"differ in --tau \(2\.0 and 4\.0\): take one at a time"):
        config.parse("train_snn_fisherinfo", argv)


def test_bad_flags_end_a_script_with_one_line_and_status_2(tmp_path):
    process = start(tmp_path, "--timestp", "4")
    shown, error = process.communicate()
    assert (process.returncode, shown) == (2, "")
    assert error == (
        "train_snn.py: error: unknown argument --timestp, see --help; did you mean --timestep?\n"
    )


def test_without_a_run_to_resume_a_new_one_is_announced(tmp_path, capsys):
    config.parse("train_snn", ["--resume", "--out_dir", str(tmp_path), "--exp_name", "run"])
    warning = f"warning: there is no run {tmp_path / 'run'}: a new one starts\n"
    assert capsys.readouterr().err == warning
