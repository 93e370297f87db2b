"""The runs of the claims: their command lines, and how they are started and stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

import config
import reproduce
from claims import CLAIMS
from claims.runs import Study
from claims.scales import SCALES
from utils import BadInput


@pytest.fixture
def study(tmp_path):
    return Study(SCALES["dry"], 2, 1, tmp_path, None)


@pytest.mark.parametrize("scale", ["small", "images", "medium", "paper"])
def test_every_command_line_is_taken(scale, tmp_path):
    study = Study(SCALES[scale], 1, 1, tmp_path, "data")
    groups = [group for claim in CLAIMS.values() for group in claim.runs(study).values()]
    for run in {run for group in groups for run in group}:
        config.make_parser(run.script).parse_args(study.command(run)[1:])
        if not run.networks:
            study.arguments(run)


def test_a_complete_folder_is_not_run_again_nor_taken_for_another(study):
    run = study.trained()[0]
    assert not study.is_complete(run)
    (study.folder(run) / "figures").mkdir(parents=True)
    (study.folder(run) / "figures" / "fisher.png").touch()
    study.beside(run, ".json").write_text(json.dumps(run.command.split()))
    study.perform([run])
    assert list(study.folder(run).iterdir()) == [study.folder(run) / "figures"]
    study.beside(run, ".json").write_text(json.dumps([*run.command.split(), "--tau", "3"]))
    with pytest.raises(BadInput, match="trained_0 is of another command line"):
        study.perform([run])


def test_a_run_that_fails_says_why(study):
    with pytest.raises(BadInput, match=r"run bad_0 failed: .*must be above 1.*bad_0.txt"):
        study.perform(study.train("bad", "--tau 0.5"))


def test_a_claim_runs_from_end_to_end(tmp_path, capsys):
    folders = ["--out_dir", str(tmp_path / "runs"), "--results", str(tmp_path)]
    reproduce.main(["concentration", "--scale", "dry", "--seeds", "1", "--jobs", "1", *folders])
    assert "concentration.md" in capsys.readouterr().out
    assert (tmp_path / "dry" / "concentration.png").exists()


def test_a_signal_ends_the_runs_too(tmp_path):
    command = [sys.executable, ROOT / "reproduce.py", "concentration", "--jobs", "2"]
    command += ["--out_dir", tmp_path, "--results", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not (tmp_path / "small" / "trained_0" / "log.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert error == "reproduce.py: stopped by SIGTERM; the same command goes on\n"
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):  # none of its group is left
        os.killpg(process.pid, 0)
