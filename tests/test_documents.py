"""The documents: the code of docs/usage.md runs, and all commands have flags that exist."""

import re

import pytest
from helpers import ROOT, run

import config

USAGE = (ROOT / "docs/usage.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", USAGE, re.DOTALL)
COMMANDS = re.findall(
    r"^    .*?(\w+)\.py(.*)", USAGE + (ROOT / "README.md").read_text(), re.MULTILINE
)


def blocks_with(word):
    return [block for block in BLOCKS if word in block]


def test_the_network_and_the_data_of_the_page_are_trained(undrawn, tmp_path):
    (tmp_path / "my_net.py").write_text(*blocks_with("def build"))
    (tmp_path / "my_data.py").write_text(*blocks_with("def load"))
    code = ["--arch", f"{tmp_path}/my_net.py:build", "--dataset", f"{tmp_path}/my_data.py:load"]
    run(tmp_path, *code, flags=["--timestep", "4", "--epochs", "1"])


@pytest.mark.parametrize("block", blocks_with("runs/"))
def test_a_finished_run_is_read_as_on_the_page(block, unbroken):
    block = re.sub(r"runs/\w+", str(unbroken), block).replace('"30, ', '"0, ')
    exec(block, {})


@pytest.mark.parametrize("script", config.GROUPS)
def test_a_command_of_the_documents_is_taken(script):
    commands = [flags.split("#")[0].split() for name, flags in COMMANDS if name == script]
    for flags in commands:
        config.make_parser(script).parse_args(flags)
    assert commands
