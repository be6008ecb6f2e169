"""What a dry run says of the cost: where lengths, memory and the policy's shape come from, and what without them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_dpo.config import ClusterConfig, DpoConfig, MegatronConfig, PolicyConfig, RunConfig, SequencePackingConfig
from nemotron_dpo.steps import tiny_policy
from nemotron_dpo.steps.estimate import forecast as forecasting
from nemotron_dpo.steps.estimate.disk import DiskNeed, disk_need
from nemotron_dpo.steps.estimate.forecast import expected_time, forecast, short_of_disk
from nemotron_dpo.steps.estimate.policy_architecture import policy_architecture
from nemotron_dpo.steps.estimate.sizes import Lengths, sizes_of
from nemotron_dpo.steps.estimate.speed import Speed
from nemotron_dpo.steps.profiles.profile import Profile
from support import small

HERE, SLURM = Profile("local", "local"), Profile("big", "slurm")


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Batches of 4 pairs of up to 100 tokens on a policy of which there is only config.json."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_policy.architecture(1024)))
    policy = PolicyConfig(model_name=str(folder), train_global_batch_size=4, max_total_sequence_length=100, precision="float32")
    return RunConfig(policy=policy)


def _lines(run: RunConfig, profile: Profile = HERE, pairs: Path | None = None) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in forecast(run, profile, pairs).splitlines())


def test_without_tokenized_pairs_the_longest_allowed_are_taken(run: RunConfig) -> None:
    lines = _lines(run)
    assert lines["pairs"].strip() == "not tokenized yet: taken to be as long as they may, 100 tokens a response"
    assert "in at most 500 steps" in lines["training"]
    assert "a rank in rows of 800 tokens" in lines["memory"]


def test_tokenized_pairs_are_counted(run: RunConfig, tmp_path: Path) -> None:
    tokens = small.random_pairs(9)
    pairs = small.write_pairs(tmp_path / "pairs.arrow", tokens)
    prompt = sum(map(len, tokens.prompts)) / 9
    responses = sum(map(len, [*tokens.chosen, *tokens.rejected])) / 9
    lines = _lines(run, pairs=pairs)
    assert f"9 as tokenized, on average {prompt:.0f} tokens of prompt and {responses:.0f} of" in lines["pairs"]
    assert lines["training"].endswith("in 2 steps")  # 9 pairs are two whole batches of 4
    assert lines["reference"].endswith("in all")
    few = small.write_pairs(tmp_path / "few.arrow", small.random_pairs(4))
    assert _lines(run, pairs=few)["training"].endswith("in 1 step")
    alone = replace(run, policy=replace(run.policy, train_global_batch_size=1))
    assert "FLOP a step of 1 pair, " in _lines(alone)["training"]
    pairs.write_bytes(pairs.read_bytes()[:100])
    assert "not tokenized yet" in _lines(run, pairs=pairs)["pairs"]


def test_a_run_that_takes_long_is_said_to(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the FLOPs of the dry run and a speed; one that is not known is measured for a long run alone."""
    pairs = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(9))
    monkeypatch.setattr(forecasting, "speed_of", lambda run, profile, *, measures: Speed(1e5, "SPEED") if measures else None)
    assert expected_time(run, HERE, pairs, is_scored=False) is None
    asked: list[bool] = []

    def known(run: RunConfig, profile: Profile, *, measures: bool = True) -> Speed:
        asked.append(measures)
        return Speed(1e5, "SPEED")

    monkeypatch.setattr(forecasting, "speed_of", known)
    whole, scored = (expected_time(run, HERE, pairs, is_scored=is_scored) for is_scored in (False, True))
    assert asked == [False, False]
    assert whole is not None
    assert whole == _lines(run, pairs=pairs)["time"].strip()  # in which speed_of has its default
    assert scored == whole.replace(whole[whole.index(" and ") : whole.index(", at")], "")
    monkeypatch.setattr(forecasting, "speed_of", lambda run, profile, *, measures: Speed(1e15, "SPEED"))
    assert expected_time(run, HERE, pairs, is_scored=False) is None
    pairs.write_bytes(b"")
    assert expected_time(run, HERE, pairs, is_scored=False) is None


def test_what_an_objective_costs_besides(run: RunConfig) -> None:
    """A pass of the whole batch before the one with gradients is a pair's forward pass, as the reference's is, times the batch."""

    def flop(text: str) -> float:
        number, unit = text.split()[:2]
        return float(number) * {"MFLOP": 1e6, "GFLOP": 1e9}[unit]

    plain = _lines(run)
    coupled = _lines(replace(run, dpo=DpoConfig(preference_loss="aot")))
    forward = 4 * flop(plain["reference"])
    assert flop(coupled["training"]) == pytest.approx(flop(plain["training"]) + forward, rel=0.01)
    assert forward == pytest.approx(flop(plain["training"]) / 3, rel=0.1)  # about a third
    said = coupled["training"].partition("; ")[2]
    assert flop(said) == pytest.approx(forward, rel=0.01)
    assert said.endswith("FLOP of a step are a forward pass before it, for aot_paired")
    assert "forward pass" not in plain["training"]
    assert coupled["reference"] == plain["reference"]
    free = _lines(replace(run, dpo=DpoConfig(preference_loss={"simpo": 1.0}, sft_loss_weight=0.1)))
    assert free["reference"].strip() == "not scored: no reference is needed by simpo and sft"


def test_memory_is_said_to_be_assumed_or_given(run: RunConfig) -> None:
    assert "assumed: 80 GB a GPU" in _lines(run, SLURM)["largest row"]
    given = replace(SLURM, settings={"gpu_memory_gb": 40})
    assert "in 40 GB a rank (gpu_memory_gb of profile big)" in _lines(run, given)["largest row"]
    small_one = replace(SLURM, settings={"gpu_memory_gb": 1})
    assert _lines(run, small_one)["largest row"].strip().startswith("none fits")


def test_policy_that_is_not_here_is_one_line(run: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    absent = replace(run, policy=replace(run.policy, model_name="some/model"))
    wanted = "none: some/model: is neither a folder here nor a model in the cache of the Hugging Face hub"
    assert forecast(absent, HERE, None) == wanted
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text((Path(run.policy.model_name) / "config.json").read_text())
    assert policy_architecture(absent) == policy_architecture(run)
    (snapshot / "config.json").write_text('{"model_type": "jamba"}')
    assert forecast(absent, HERE, None).startswith("none: ")


def test_sizes_of_a_divided_run(run: RunConfig) -> None:
    megatron = MegatronConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    megatron = replace(megatron, num_layers_in_first_pipeline_stage=3, activation_checkpointing=True)
    packing = SequencePackingConfig(train_mb_tokens=50)
    divided = replace(run, cluster=ClusterConfig(gpus_per_node=8))
    divided = replace(divided, policy=replace(run.policy, megatron_cfg=megatron, sequence_packing=packing))
    sizes = sizes_of(divided, Lengths(10, 30))
    assert (sizes.copies, sizes.tokens, sizes.in_flight) == (2, 50, 2)  # 2 pairs of 40 tokens a rank
    assert sizes.layout.stages(4) == [slice(0, 3), slice(3, 4)]
    assert sizes.whole_layers


def test_time_follows_from_the_speed_of_the_devices(run: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """500 steps on 16 H100s of 989.5 TFLOP/s, of which 0.4 is counted on; a measured CPU is remembered."""
    wide = replace(run, policy=replace(run.policy, precision="bfloat16"), cluster=ClusterConfig(gpus_per_node=8, num_nodes=2))
    lines = _lines(wide, Profile("big", "slurm", settings={"partition": "H100"}))
    flop = _number(lines["training"].partition(", ")[2])
    expected = f"at most about {flop / (0.4 * 16 * 989.5e12):.2g} s of training, at 0.4 of 16 GPUs (H100) of 989.5 TFLOP/s each"
    assert lines["time"].strip() == expected
    assert "(H100, assumed)" in _lines(wide, SLURM)["time"]
    assert "(H100, assumed) of 67 TFLOP/s" in _lines(run, SLURM)["time"]  # in float32
    asked = []
    done = subprocess.CompletedProcess([], 0, stdout=b"2e12\n")
    monkeypatch.setattr(subprocess, "run", lambda argv, **options: asked.append(argv[-1]) or done)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _lines(run)
    assert not (tmp_path / "cache").exists()  # a dry run makes no folder
    (tmp_path / "cache" / "nemotron-dpo").mkdir(parents=True)
    asked.clear()
    here = [_lines(run)["time"].strip() for _ in range(2)]
    assert asked == ["float32"]
    assert here[0] == here[1]
    assert here[0].endswith("at 0.7 of the 2000 GFLOP/s at which this machine multiplies float32 matrices")
    seconds = _number(_lines(run)["training"].partition(", ")[2]) / (0.7 * 2e12)
    assert here[0].startswith(f"at most about {seconds:.2g} s of training, at")


def test_disk_is_counted_and_a_full_one_said(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 steps saved every 50: steps 50, 100 and 120; of a float32 weight 4 bytes, with its state 16."""
    long = replace(run, dpo=replace(run.dpo, max_num_steps=120))
    weights, sizes = policy_architecture(run).num_parameters(), sizes_of(run, Lengths(0, 200))
    cases = [
        ({}, 120, 4, 3),
        ({"save_optimizer": True}, 120, 16, 3),
        ({}, 100, 4, 2),
        ({}, 1000, 4, 5),  # the best three, the newest, and a new one before an old one goes
        ({"keep_top_k": None}, 1000, 4, 20),
        ({"ft_save_period": 10, "ft_keep_latest_k": 2}, 1000, 4, 6),
        ({"ft_save_period": 30}, 60, 4, 4),
    ]
    for changes, steps, width, most in cases:
        changed = replace(long, checkpointing=replace(long.checkpointing, **changes))
        need = disk_need(changed, policy_architecture(run), sizes, steps)
        assert need == DiskNeed(width * weights, most, 4 * weights), changes
    nothing = replace(long, checkpointing=replace(long.checkpointing, enabled=False))
    assert _lines(nothing)["disk"].strip() == "nothing is saved but the records of the run"
    for free, lines in ((16 * weights - 1, 1), (16 * weights, 0)):
        monkeypatch.setattr(forecasting, "free_bytes", lambda folder, free=free: free)
        assert len(short_of_disk(long)) == lines


def _number(text: str) -> float:
    """The FLOP of a text that begins with `1.23 TFLOP`."""
    number, unit = text.split()[:2]
    return float(number) * {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15}[unit]
