"""No secret reaches the screen or a file: whatever key it is given to, and whether a run comes of it or a refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron_dpo.config import known_keys, load_run, redact, redact_argv, run_origins, run_tree
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import text
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile import job_record as job
from nemotron_dpo.steps.compile.dpo_missing import missing_inputs
from nemotron_dpo.steps.compile.dpo_plan import compile_plan
from nemotron_dpo.steps.profiles.profile import Profile

STEP = configs_root() / "rl" / "nemo_rl" / "dpo"
_WORD = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", min_size=36, max_size=40)
TOKENS = st.one_of(
    _WORD.map("hf_{}".format),
    _WORD.map("nvapi-{}".format),
    _WORD.map("sk-{}".format),
    _WORD.map("ghp_{}".format),
    _WORD.map("glpat-{}".format),
    _WORD.map("https://me:{}@host/x".format),
    st.text("0123456789abcdef", min_size=40, max_size=40).filter(lambda word: not word.isdigit()),
)
# What is secret by the name of its key alone may look like anything.
NAMES = st.sampled_from(["logger.wandb.api_key", "logger.swanlab.token", "policy.hf_token", "WANDB_API_KEY", "client_secret"])
PLAIN = _WORD.map("zq{}".format)
KEYS = st.sampled_from(known_keys())


def _secret_part(value: str) -> str:
    return value.removeprefix("https://me:").removesuffix("@host/x")


def _everything(overrides: Sequence[str], profile: Profile) -> str:
    """All that a dry run prints and a run writes, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        return _told(overrides, Path(folder), profile)


def _told(overrides: Sequence[str], folder: Path, profile: Profile) -> str:
    try:
        run, warnings = load_run(STEP / "tiny.yaml", overrides, profile.cluster())
        shown = [*warnings, *missing_inputs(run)]
        origins = run_origins(STEP / "tiny.yaml", overrides)
        shown.append(text.with_origins(text.flat(redact(run_tree(run))), origins, STEP, profile.name))
        plan = compile_plan(run, folder / "job", STEP)
    except UserError as error:
        return str(error)
    provenance = job.Provenance("dpo", ["nemotron-steps", *overrides], STEP / "tiny.yaml", overrides, profile)
    shown += [line for _, line in (*job.file_lines(plan), *job.plan_lines(plan))]
    job.write_job(plan, provenance, datetime(2026, 1, 2))
    return "\n".join([*shown, *(path.read_text() for path in plan.job.iterdir())])


@settings(max_examples=60, deadline=None)
@given(KEYS, TOKENS)
@example("data.train", "hf_" + 6 * "zq1234")  # refused with what the value might mean
@example("data.validation", 4 * "fedcba9876")
@pytest.mark.slow
def test_value_that_looks_like_a_secret(key: str, value: str):
    assert _secret_part(value) not in _everything([f"{key}={value}"], Profile("local", "local"))


@settings(max_examples=10, deadline=None)
@given(NAMES, PLAIN)
def test_key_that_names_a_secret(key: str, value: str):
    assert value not in _everything([f"{key}={value}"], Profile("local", "local"))


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "HF_TOKEN_2", "GITHUB_PAT"]), PLAIN, TOKENS)
def test_profile(key: str, plain: str, token: str):
    settings_ = {"env_vars": {key: plain, "OTHER": token}, "client_secret": plain}
    shown = _everything([], Profile("p", "local", {key: plain}, settings_))
    assert plain not in shown
    assert _secret_part(token) not in shown


@given(st.sampled_from(["--hf-token", "--api-key", "--wandb-api-key"]), PLAIN)
def test_option_that_names_a_secret(option: str, value: str):
    shown = redact_argv(["run", option, value, "dpo.seed=1", f"{option}={value}", "--policy-tokenizer", "gpt2"])
    assert shown == ["run", option, "***", "dpo.seed=1", f"{option}=***", "--policy-tokenizer", "gpt2"]


def test_no_key_of_a_config_is_taken_for_a_secret():
    keys = [*known_keys(), "policy.tokenizer.name", "data.train.prompt_key"]
    assert [key for key in keys if redact({key: "value"}) != {key: "value"}] == []


def test_a_secret_of_the_environment_goes_into_no_other_key(monkeypatch: pytest.MonkeyPatch):
    """A stranger's config could send it into a folder's name, and so into every file that names the folder."""
    secret = "zq0123456789"
    monkeypatch.setenv("MY_HUB_TOKEN", secret)
    for key in ("checkpointing.checkpoint_dir", "logger.wandb.name", "policy.model_name"):
        override = f"{key}=/x-${{oc.env:MY_HUB_TOKEN}}"
        with pytest.raises(UserError) as refused:
            load_run(STEP / "tiny.yaml", [override])
        assert refused.value.field == key
        assert "holds the secret $MY_HUB_TOKEN, and is written into files" in str(refused.value)
        assert secret not in str(refused.value)
    for named in ("PGPASSWORD", "HF_TOKEN_2", "GITHUB_PAT", "SLACK_WEBHOOK_URL", "MYSQL_PWD"):
        monkeypatch.setenv(named, secret)
        with pytest.raises(UserError, match="holds the secret"):
            load_run(STEP / "tiny.yaml", [f"logger.wandb.name=${{oc.env:{named}}}"])
        monkeypatch.delenv(named)
    load_run(STEP / "tiny.yaml", ["policy.model_name=${oc.env:PWD}/policy", "policy.env_vars.OTHER=${oc.env:MY_HUB_TOKEN}"])
    assert redact({"a": [f"/x-{secret}/y"]}) == {"a": ["/x-***/y"]}
    assert redact_argv(["x", f"--name={secret}"]) == ["x", "--name=***"]
