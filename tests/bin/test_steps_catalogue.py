"""nemotron-steps list, show and help, and what a shell may complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import BIN, check

PROGRAM = "nemotron-steps"

LISTED = [
    (["list"], "rl/nemo_rl/dpo"),
    (["list", "--category", "rl", "--tag", "dpo"], "rl/nemo_rl/dpo"),
    (["list", "--consumes", "training_jsonl", "--produces", "checkpoint_megatron"], "rl/nemo_rl/dpo"),
    (["list", "--tree"], "    dpo  Direct preference optimization"),
    (["list", "--category", "convert"], "convert/hf_to_megatron"),
    (["show", "dpo"], "dpo.reference_policy_kl_penalty"),
    (["show", "dpo"], "\nObjectives (dpo.preference_loss)\n  alphapo       no reference                as simpo"),
    (["show", "dpo"], "\n  rpo_sq        reference, rewards of rows  rows have rewards"),
    (["show", "dpo"], "  convert/hf_to_megatron  checkpoint_megatron\n"),
    (["show", "dpo"], "  eval/preference_score   checkpoint_megatron\n"),
    (["help", "dpo"], "rl/nemo_rl/dpo: Direct preference optimization\n"),
    (["help", "run"], "Usage: nemotron-steps run [OPTIONS] STEP [KEY.PATH=VALUE | --SECTION=VALUE]..."),
    (["help"], "Usage: nemotron-steps [OPTIONS] COMMAND [ARGS]..."),
]


@pytest.mark.parametrize(("arguments", "line"), LISTED)
def test_list_and_show(arguments: list[str], line: str):
    assert line in check(PROGRAM, *arguments).stdout.decode()


@pytest.mark.parametrize("option", ["--category", "--tag", "--consumes", "--produces"])
@pytest.mark.parametrize(("form", "shown"), [(["--json"], b"[]\n"), (["--tree"], b""), ([], b"")])
def test_filters_leave_out(option: str, form: list[str], shown: bytes):
    done = check(PROGRAM, "list", option, "none", *form)
    assert done.stdout == shown
    assert done.stderr.startswith(
        b"nemotron-steps: no step is like that; the categories are convert, data_prep, env, eval, rl; "
    )


def test_help_of_run_says_it_all():
    shown = " ".join(check(PROGRAM, "help", "run").stdout.decode().split())
    for option in ("-c, --config", "-r, --run", "-b, --batch", "-d, --dry-run", "--from", "--to", "--force", "--force-squash"):
        assert f" {option} " in shown
    for word in ("KEY.PATH=VALUE", "--SECTION=VALUE", "run.env", "NEMOTRON_ENV_FILE", "job.yaml", "Exit status: 0 done"):
        assert word in shown


def test_json():
    listed = {step["id"]: step for step in json.loads(check(PROGRAM, "list", "--json").stdout)}
    dpo = listed["rl/nemo_rl/dpo"]
    assert {"name": "dpo", "needs": "reference", "use": "the one to begin with"} in dpo["objectives"]
    assert listed["convert/hf_to_megatron"]["objectives"] == []
    assert dpo == json.loads(check(PROGRAM, "show", "dpo", "--json").stdout)
    assert [item["type"] for item in dpo["produces"]] == ["checkpoint_megatron"]
    assert {"step": "convert/megatron_to_hf", "artifact": "checkpoint_megatron"} in dpo["after"]
    assert sorted(listed) == [
        "convert/hf_to_megatron", "convert/megatron_to_hf", "convert/merge_lora", "data_prep/preference_tokenize",
        "env/env_toml", "env/from_trl", "eval/preference_score", "rl/nemo_rl/dpo",
    ]  # fmt: skip


def test_help_of_a_step_is_show():
    assert check(PROGRAM, "help", "rl/nemo_rl/dpo").stdout == check(PROGRAM, "show", "rl/nemo_rl/dpo").stdout


def test_nemotron_is_the_group_above():
    argv = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import nemotron_steps as n; n.nemotron_main()",
    ]
    done = subprocess.run([*argv, str(BIN), "steps", "list"], capture_output=True, text=True)
    assert done.stdout == check(PROGRAM, "list").stdout.decode()


COMPLETED = [
    ("nemotron-steps run rl/", 2, ["rl/nemo_rl/dpo"]),
    ("nemotron-steps show conv", 2, ["convert/hf_to_megatron", "convert/megatron_to_hf", "convert/merge_lora"]),
    ("nemotron-steps run dpo -c ", 4, ["default", "ipo", "mpo", "orpo", "simpo", "smollm2", "tiny", "tulu3"]),
    ("nemotron-steps run -r tw", 3, ["two"]),
    ("nemotron-steps run dpo -b ", 4, ["two", "three"]),
    ("nemotron-steps run dpo --from ref", 4, ["ref-logprobs"]),
    ("nemotron-steps run dpo dpo.ref", 3, ["dpo.reference_policy_kl_penalty="]),
    ("nemotron-steps run nothing -c ", 4, []),
]


@pytest.mark.parametrize(("words", "at", "offered"), COMPLETED)
def test_completion(tmp_path: Path, words: str, at: int, offered: list[str]):
    (tmp_path / "env.toml").write_text('[wandb]\nentity = "me"\n[two]\nexecutor = "local"\n[three]\nextends = "two"\n')
    asked = {"_NEMOTRON_STEPS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    answer = check(PROGRAM, cwd=tmp_path, env={**os.environ, **asked}).stdout.decode()
    assert [line.removeprefix("plain,") for line in answer.split()] == offered


BASH = """
    eval "$(_NEMOTRON_STEPS_COMPLETE=bash_source nemotron-steps)"
    COMP_WORDS=(nemotron-steps run dpo -c ti) COMP_CWORD=4
    _nemotron_steps_completion nemotron-steps ti -c
    echo "${COMPREPLY[@]}"
"""
FISH = """
    _NEMOTRON_STEPS_COMPLETE=fish_source nemotron-steps | source
    complete -C 'nemotron-steps run dpo -c ti'
"""
# A terminal of its own for a zsh in which Tab is pressed.
ZSH = r"""
    zmodload zsh/zpty
    zpty inner zsh -f -i
    zpty -w inner "autoload -U compinit; compinit -D -u"
    zpty -w inner "source <(_NEMOTRON_STEPS_COMPLETE=zsh_source nemotron-steps); PS1=READY"
    zpty -r -m inner line '*READY*' && zpty -w -n inner $'nemotron-steps run dpo -c ti\t'
    zpty -r -m inner line '*-c tiny*' && echo tiny
    zpty -d inner
"""


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH), ("zsh", ZSH)])
def test_completion_in_a_real_shell(shell: str, script: str):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here (apt-get install {shell})")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True, timeout=60, env=env)
    assert done.stdout == "tiny\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_of_every_shell(shell: str):
    script = check(PROGRAM, env={**os.environ, "_NEMOTRON_STEPS_COMPLETE": f"{shell}_source"}).stdout.decode()
    assert f"{shell}_complete" in script
    assert "nemotron-steps" in script
