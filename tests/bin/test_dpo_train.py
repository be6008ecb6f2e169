"""dpo-train as a program: one process against several, resilience to bad input, what it leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from nemotron_dpo.policy.load_balancing import METRICS as ROUTERS
from nemotron_dpo.streams import open_reader, open_writer
from support import small
from support.programs import ROOT, check, command, error_line, execute_job, losses, metrics, records, run, run_with_small_files

COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=6",
    "dpo.max_num_epochs=2",
)
SFT = ("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1")


@pytest.fixture(scope="module")
def scored(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 random pairs scored in float32."""
    folder = tmp_path_factory.mktemp("scored")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", "--policy", llama, "--precision", "float32")
    return folder / "scored.arrow"


@pytest.fixture(scope="module")
def single(scored: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "single"
    settings = (*COMMON, "logger.token_metrics=true")
    check("dpo-train", scored, "--policy", llama, "--run-dir", run_dir, "--validation", scored, *settings)
    return run_dir


def test_keys_without_meaning_are_named(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("dpo: {val_micro_batch_size: 1}\nlogger: {collect_worker_metrics: true}\n")
    given = ["none.arrow", "--policy", llama, "--run-dir", tmp_path / "run", "-c", "theirs.yaml"]
    said = run("dpo-train", *given, cwd=tmp_path).stderr.decode()
    assert (
        "dpo-train: no meaning here: dpo.val_micro_batch_size, logger.collect_worker_metrics; `nemotron-steps run dpo -d -v -c "
        in said
    )


def test_it_starts_at_ln_2_learns_and_leaves_what_it_promises(single: Path, scored: Path) -> None:
    curve = losses(single)
    assert curve[0] == pytest.approx(np.log(2), abs=1e-5)
    assert curve[-1] < 0.3
    info = orjson.loads((single / "checkpoints" / "step_6" / "training_info.json").read_bytes())
    assert info["total_steps"] == 6
    assert info["consumed_samples"] == 48
    assert (single / "checkpoints" / "step_6" / "config.yaml").is_file()
    assert "val:validation-default_loss" in info
    validations = [record for record in metrics(single) if "validation-default/loss" in record]
    assert [record["step"] for record in validations] == [0, 6]
    assert validations[1]["validation-default/accuracy"] == 1.0
    told = orjson.loads((single / "run.json").read_bytes())
    assert told["inputs"] == {"train": str(scored), "validation-default": str(scored)}


@pytest.mark.slow
def test_loss_curve_equals_transformers_and_torch_adamw(single: Path, scored: Path, llama: Path) -> None:
    """Steps 1-6 by plain transformers forwards, autograd and torch.optim.AdamW, in the order of the sampler.

    So are entropy and accuracy of tokens, as TRL's DPOTrainer means them: of both responses, and of chosen ones.
    """
    import torch

    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.preferences.sampler import batch_indices

    with open_reader(scored, "scored_pairs") as reader:
        pairs = Pairs.of(reader.read_all())
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    model = small.load_llama.__wrapped__(llama)
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    plain = [p for name, p in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    rates = [0.003 * 0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    curve, of_tokens = [], []
    for step in range(6):
        margins, entropies, hits = [], [], []
        for i in batch_indices(step, 24, 8, seed=42, shuffle=True):
            sides = []
            for ids, ref in ((pairs.chosen[i], pairs.ref_chosen[i]), (pairs.rejected[i], pairs.ref_rejected[i])):
                log_p = small.reference_log_p(model, pairs.prompt[i], ids)
                tokens = torch.from_numpy(ids.astype(np.int64))
                logps = log_p.gather(1, tokens[:, None]).squeeze(1)
                sides.append((logps - torch.from_numpy(np.array(ref))).sum())
                entropies.append(-(log_p.exp() * log_p).sum(1).detach())
                if len(sides) == 1:
                    hits.append((log_p.argmax(1) == tokens).double())
            margins.append(sides[0] - sides[1])
        of_tokens.append([torch.cat(entropies).mean().item(), torch.cat(hits).mean().item()])
        loss = -torch.nn.functional.logsigmoid(0.3 * torch.stack(margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        curve.append(loss.item())
    assert losses(single) == pytest.approx(curve, abs=1e-4)
    records = [record for record in metrics(single) if "train/loss" in record]
    for record, (entropy, accuracy) in zip(records, of_tokens, strict=True):
        assert record["train/entropy"] == pytest.approx(entropy, abs=2e-4)
        assert record["train/mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert len({accuracy for _, accuracy in of_tokens}) > 3


@pytest.mark.slow
def test_metrics_do_not_depend_on_packing(single: Path, scored: Path, llama: Path, tmp_path: Path) -> None:
    loose = ("policy.sequence_packing.enabled=false", "policy.train_micro_batch_size=1", "logger.token_metrics=true")
    check("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path, "--validation", scored, *COMMON, *loose)
    for ours, theirs in zip(metrics(tmp_path), metrics(single), strict=True):
        for name in theirs:
            if name.endswith(("/loss", "/entropy", "/mean_token_accuracy")):
                assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name


@pytest.mark.slow
def test_token_metrics_change_no_other_number(single: Path, scored: Path, llama: Path, tmp_path: Path) -> None:
    """Not one bit, in training, in validation and of the weights; without them there are none."""
    check("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path, "--validation", scored, *COMMON)
    for without, having in zip(metrics(tmp_path), metrics(single), strict=True):
        section = "train" if "train/loss" in having else "validation-default"
        assert having.keys() - without.keys() == {f"{section}/entropy", f"{section}/mean_token_accuracy"}
        assert {name: having[name] for name in without if "timing" not in name and "memory" not in name} == {
            name: value for name, value in without.items() if "timing" not in name and "memory" not in name
        }


@pytest.mark.slow
def test_supervised_fine_tuning_needs_no_scores(llama: Path, tmp_path: Path) -> None:
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8, seed=1))
    sft = ("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "dpo.sft_average_log_probs=true", "dpo.max_num_epochs=5")
    check("dpo-train", tmp_path / "pairs.arrow", "--policy", llama, "--run-dir", tmp_path / "run", *COMMON, *sft)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] - 0.2
    assert metrics(tmp_path / "run")[0]["train/preference_loss"] == 0.0


@pytest.mark.slow
def test_checkpoints_are_saved_every_period_and_the_best_are_kept(scored: Path, llama: Path, tmp_path: Path) -> None:
    period = ("checkpointing.save_period=2", "dpo.val_period=2", "checkpointing.keep_top_k=1")
    worst = ("checkpointing.metric_name=val:validation-default_accuracy", "checkpointing.higher_is_better=false")
    arguments = (scored, "--policy", llama, "--run-dir", tmp_path, "--validation", scored)
    check("dpo-train", *arguments, *COMMON, *period, *worst)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step_2", "step_6"]  # the lowest accuracy is the earliest; the newest always stays


@pytest.mark.slow
def test_further_steps_are_saved_to_go_on_from(scored: Path, llama: Path, tmp_path: Path) -> None:
    """save_period 4 keeps step 4, ft_save_period 1 saves all six, and the newest two stay."""
    periods = ("checkpointing.save_period=4", "checkpointing.ft_save_period=1", "checkpointing.ft_keep_latest_k=2")
    arguments = (scored, "--policy", llama, "--run-dir", tmp_path)
    done = check("dpo-train", *arguments, *COMMON, *periods, "checkpointing.save_optimizer=true")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_4", "step_5", "step_6"]
    said = done.stderr.decode()
    assert (
        f"removed {tmp_path}/checkpoints/step_3: not among the newest 3 of those of every 4 steps, nor among the newest 2"
        in said
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_no_checkpoint(scored: Path, llama: Path, tmp_path: Path) -> None:
    arguments = (scored, "--policy", llama, "--run-dir", tmp_path, *COMMON, "dpo.max_num_steps=1")
    done = run_with_small_files(20_000, "dpo-train", *arguments)
    assert error_line(done, "dpo-train").startswith(f"{tmp_path / 'checkpoints' / 'step_1'}: cannot be written (")
    assert done.returncode == 1
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_out_of_time_saves_and_ends(scored: Path, llama: Path, tmp_path: Path) -> None:
    limit = "checkpointing.checkpoint_must_save_by=00:00:00:00"  # past before the first step, however fast the start
    check("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path, *COMMON, limit)
    assert len(losses(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


@pytest.mark.slow
def test_it_reads_a_pipe_and_keeps_the_input(scored: Path, llama: Path, tmp_path: Path) -> None:
    content = scored.read_bytes()
    check("dpo-train", "-", "--policy", llama, "--run-dir", tmp_path, *COMMON, "dpo.max_num_steps=1", input=content)
    assert (tmp_path / "input.arrow").read_bytes() == content


def cut(content: bytes) -> bytes:
    return content[: len(content) - 400]


def not_finite(path: Path, target: Path) -> None:
    with open_reader(path, "scored_pairs") as reader:
        table, info = reader.read_all(), reader.info
    rows = table.to_pylist()
    rows[3]["ref_rejected_logps"][0] = float("nan")
    with open_writer(target, info) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("dpo.max_step=3",), 1, "dpo.max_num_steps"),
        (("policy.optimizer.lr=fast",), 1, "policy.optimizer.lr"),
        (("policy.train_global_batch_size=25",), 1, "policy.train_global_batch_size 25 is more than the 24 pairs"),
        (("policy.max_total_sequence_length=20",), 1, "pairs of more than 20 tokens"),
        (("policy.megatron_cfg.tensor_model_parallel_size=2",), 1, "1 processes do not divide into tensor x pipeline"),
        (("policy.optimizer.lr=.inf",), 1, '"policy.optimizer.lr" is inf where a finite number is due'),
        (
            ("checkpointing.metric_name=train:acuracy",),
            1,
            "which nothing measures: did you mean train:accuracy? without validation",
        ),
        (("checkpointing.checkpoint_must_save_by=soon",), 1, "is 'soon' where DD:HH:MM:SS is due"),
        (("policy.scheduler=[{name: torch.optim.lr_scheduler.StepLR}]",), 1, '"policy.scheduler" StepLR: '),
    ],
)
def test_bad_settings_are_one_line(
    arguments: tuple[str, ...], status: int, message: str, scored: Path, llama: Path, tmp_path: Path
) -> None:
    done = run("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path / "run", *COMMON, *arguments)
    assert message in error_line(done, "dpo-train")
    assert done.returncode == status
    assert not (tmp_path / "run").exists()


def test_metrics_that_checkpoints_may_be_ranked_by_are_those_there_are(single: Path) -> None:
    from nemotron_dpo.objective.metric_names import selectors

    info = orjson.loads((single / "checkpoints" / "step_6" / "training_info.json").read_bytes())
    measured = {name for name in info if name.startswith(("train:", "val:"))}
    watched = {name for name in measured if re.search("reward_noise|kl_|_per_token|epoch", name)}
    assert len(watched) == 2 + 2 * 4 + 1  # nothing to rank by: of the measuring, of the distance from the reference, a count
    assert measured - watched == set(selectors(["default"], ["preference"], token_metrics=True))


ELSEWHERE = {  # of objectives without a reference or with a state, of routers, of GPUs
    *(f"train/{name}" for name in ("log_ratio_chosen_mean", "log_ratio_rejected_mean", "state/NAME")),
    *(f"train/{name}" for name in (*ROUTERS.values(), "train_fp_utilization")),
    "memory/train/max_allocated_bytes",
}
OF_STEPS = {f"train/{name}" for name in ("grad_norm", "lr", "wd", "epoch", "total_valid_tokens", "reward_noise", "state/NAME")}


def test_the_table_of_metrics_has_what_is_measured_and_nothing_else(single: Path) -> None:
    page = (ROOT / "libs" / "nemotron_dpo" / "training" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| metric | says | TRL's |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    ours, theirs = ({name for row in cells for name in re.findall("`([^`]+)`", row[column])} for column in (0, 2))
    measured = {re.sub("validation-default", "validation-NAME", name) for record in records(single) for name in record}
    of_sets = {name for name in measured if name.startswith("validation-")}
    assert measured - of_sets - {"step"} == ours - ELSEWHERE
    of_pairs = {name for name in ours - ELSEWHERE - OF_STEPS if name.startswith("train/") and "fp_util" not in name}
    assert {name.replace("validation-NAME/", "train/") for name in of_sets} == of_pairs
    rewards = {f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    assert rewards | {"logps/chosen", "logps/rejected", "entropy", "mean_token_accuracy", "num_tokens", "epoch"} <= theirs


def test_times_are_parts_of_the_step(single: Path) -> None:
    for record in metrics(single):
        if "train/loss" in record:
            times = {name.removeprefix("timing/train/"): value for name, value in record.items() if name.startswith("timing/")}
            parts = times["policy_training/forward_backward"] + times["policy_training/optimizer"]
            assert times["policy_training"] == pytest.approx(parts)
            assert 0 < times["data_processing"] + times["policy_training"] <= times["total_step_time"]
    saved = [record for record in records(single) if "timing/train/checkpointing" in record]
    assert [(record.keys() - {"timing/train/checkpointing"}, record["step"]) for record in saved] == [({"step"}, 6)]


@pytest.mark.slow
def test_validation_sets_are_files_or_named_files(scored: Path, llama: Path, tmp_path: Path) -> None:
    """A path with "=" in it is a path; one name stands for one set; what the sets come to is said."""
    held_out = tmp_path / "lr=1e-6" / "s.arrow"
    held_out.parent.mkdir()
    held_out.write_bytes(scored.read_bytes())
    arguments = [scored, "--policy", llama, "--run-dir", tmp_path / "run", *COMMON, "dpo.max_num_steps=1", "dpo.val_batches=4"]
    sets = ["--validation", held_out, "--validation", f"more={held_out}"]
    done = check("dpo-train", *arguments, *sets, "checkpointing.enabled=false", "policy.scheduler.warmup_steps=3")
    validated = {name.partition("/")[0] for record in metrics(tmp_path / "run") for name in record if name.startswith("valid")}
    assert validated == {"validation-default", "validation-more"}
    place = 'policy.scheduler.warmup_steps=3: "policy.scheduler.warmup_steps"'
    product = "pairs, and dpo.val_batches x dpo.val_global_batch_size is 32: all of them are taken"
    seen = "are trained on as well: what it measures of them is no test"
    warnings = [line for line in done.stderr.decode().splitlines() if line.startswith("dpo-train: warning: ")]
    assert warnings == [
        f"dpo-train: warning: {place} is 3, and the run has no more than 1 step: all of it is warm-up",
        f"dpo-train: warning: validation set default has 24 {product}",
        f"dpo-train: warning: validation set more has 24 {product}",
        *(f"dpo-train: warning: 24 of the 24 pairs of validation set {name} {seen}" for name in ("default", "more")),
    ]
    known = orjson.loads((tmp_path / "run" / "run.json").read_bytes())
    assert known["validation"] == {name: {"pairs": 24, "trained_on": 24} for name in ("default", "more")}
    done = run("dpo-train", *arguments, "--validation", "name=")
    assert error_line(done, "dpo-train").startswith("--validation name=: is neither a file nor NAME=FILE")
    assert done.returncode == 2


def test_a_used_run_folder_is_refused(single: Path, scored: Path, llama: Path) -> None:
    done = run("dpo-train", scored, "--policy", llama, "--run-dir", single, *COMMON)
    assert error_line(done, "dpo-train").startswith(f"{single / 'checkpoints'}: holds the checkpoints of an earlier run")
    assert len(losses(single)) == 6


@pytest.mark.slow
def test_bad_inputs_are_one_line(scored: Path, llama: Path, untied_llama: Path, tmp_path: Path) -> None:
    small.write_pairs(tmp_path / "unscored.arrow", small.random_pairs(4))
    (tmp_path / "cut.arrow").write_bytes(cut(scored.read_bytes()))
    (tmp_path / "empty.arrow").write_bytes(b"")
    (tmp_path / "text.arrow").write_bytes(b'{"prompt": "x"}\n')
    not_finite(scored, tmp_path / "nan.arrow")
    beyond = small.random_pairs(8)
    beyond.rejected[5][0] = small.VOCAB
    small.write_pairs(tmp_path / "beyond.arrow", beyond)
    for source, policy, message in (
        (tmp_path / "none.arrow", llama, "no such file"),
        (tmp_path / "empty.arrow", llama, "is empty"),
        (tmp_path / "text.arrow", llama, "is JSON where an Arrow stream is due"),
        (tmp_path / "unscored.arrow", llama, "run ref-logprobs on it first"),
        (tmp_path / "cut.arrow", llama, "the stream from ref-logprobs"),
        (tmp_path / "nan.arrow", llama, "has nan in ref_rejected_logps (line 4 of the input), which is no log-prob"),
        (scored, untied_llama, "was scored by another policy than --policy"),
        (scored, tmp_path / "no-model", "no such model folder"),
        (scored, tmp_path, "is neither an HF folder"),
        (
            (tmp_path / "beyond.arrow", *SFT),
            llama,
            f"has token id {small.VOCAB}; the policy knows {small.VOCAB} tokens (line 6",
        ),
        ((scored, "--validation", tmp_path / "beyond.arrow", *SFT), llama, f"beyond.arrow: has token id {small.VOCAB}; the"),
    ):
        arguments = source if isinstance(source, tuple) else (source,)
        done = run("dpo-train", *arguments, "--policy", policy, "--run-dir", tmp_path / "run", *COMMON)
        assert message in error_line(done, "dpo-train")
        assert done.returncode == 1
    assert not (tmp_path / "run").exists()


def test_a_time_limit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """By the dry run of the whole chain too, in the same words."""
    limit = "checkpointing.checkpoint_must_save_by=soon"
    words = f"{limit}: \"checkpointing.checkpoint_must_save_by\" is 'soon' where DD:HH:MM:SS is due"
    nothing = (tmp_path / "none.arrow", "--policy", tmp_path / "none", "--run-dir", tmp_path / "run")
    for program, *arguments in (
        ("dpo-train", *nothing, limit),
        ("nemotron-steps", "run", "rl/nemo_rl/dpo", "-c", "tiny", "--dry-run", limit),
    ):
        done = run(program, *arguments, cwd=tmp_path)
        assert error_line(done, program) == words
        assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.multiprocess
def test_what_one_of_two_processes_refuses_ends_both_with_one_line(
    scored: Path, llama: Path, untied_llama: Path, tmp_path: Path
) -> None:
    """Each checks half of the rows, so the second alone finds row 21; weights are compared by the first alone."""
    with open_reader(scored, "scored_pairs") as reader:
        table, info = reader.read_all(), reader.info
    rows = table.to_pylist()
    rows[20]["pair_id"] = rows[3]["pair_id"]
    with open_writer(tmp_path / "wrong.arrow", info) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    wrong_id = "has a pair_id that is not the digest of its token ids (line 21 of the input): was the file changed?"
    for source, policy, message in (
        (tmp_path / "wrong.arrow", llama, f"{tmp_path}/wrong.arrow: {wrong_id} Tokenize again"),
        (scored, untied_llama, f"{scored}: was scored by another policy than --policy: run ref-logprobs with this policy, or"),
    ):
        arguments = (source, "--policy", policy, "--run-dir", tmp_path / "run", *COMMON)
        alone = error_line(run("dpo-train", *arguments), "dpo-train")
        assert alone.startswith(message)
        done = execute_job(2, command("dpo-train", *arguments), launched=True)
        ours = [line for line in done.stderr.decode().splitlines() if line.startswith("dpo-train: ")]
        assert ours == [f"dpo-train: error: {alone}"]
        assert done.returncode == 1
        assert not (tmp_path / "run").exists()


def test_a_wrong_reference_stops_at_step_1(scored: Path, llama: Path, tmp_path: Path) -> None:
    with open_reader(scored, "scored_pairs") as reader:
        table, info = reader.read_all(), reader.info
    rows = table.to_pylist()
    for row in rows:
        row["ref_chosen_logps"][0] -= 1.0
    wrong = rows[3]
    wrong["ref_rejected_logps"][-1] -= 1.5
    with open_writer(tmp_path / "wrong.arrow", info) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    arguments = (tmp_path / "wrong.arrow", "--policy", llama, "--run-dir", tmp_path / "run", *COMMON, "data.shuffle=false")
    done = run("dpo-train", *arguments)
    line = error_line(done, "dpo-train")
    where = (
        f"token {len(wrong['rejected_ids'])} of the rejected response of pair {wrong['pair_id'].hex()} (line 4 of the input)"
    )
    assert " tokens of the first batch differ from their reference, by " in line
    assert f"most of all {where}: " in line
    assert line.endswith(
        f", {wrong['ref_rejected_logps'][-1]:.6g} when scored; 0.001 nats and 0.0001 rms are allowed in float32: "
        "score the pairs again with ref-logprobs at the same --precision"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()
