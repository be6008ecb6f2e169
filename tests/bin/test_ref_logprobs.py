"""ref-logprobs as a program: its scores against transformers, pipes, reuse, several processes, bad input."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from nemotron_dpo.checkpoint.weights_digest import weights_digest
from nemotron_dpo.kernels.choice import VARIABLE
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.sources import resolve
from nemotron_dpo.streams import open_reader, open_writer
from support import families, small
from support.programs import Done, check, error_line, run, torchrun


def read(path: Path) -> pa.Table:
    with open_reader(path, "scored_pairs") as reader:
        return reader.read_all()


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.arrow", small.random_pairs(12, seed=21))


@pytest.fixture(scope="module")
def scored(pairs_file: Path, llama: Path) -> Path:
    out = pairs_file.with_name("scored.arrow")
    check("ref-logprobs", pairs_file, "-o", out, "--policy", llama, "--precision", "float32", "--micro-batch-tokens", 64)
    return out


def test_every_token_is_scored_as_transformers_does(scored: Path, llama: Path) -> None:
    pairs, model = Pairs.of(read(scored)), small.load_llama(llama)
    assert len(pairs) == 12
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    for i in range(12):
        for ids, ours in ((pairs.chosen[i], pairs.ref_chosen[i]), (pairs.rejected[i], pairs.ref_rejected[i])):
            assert np.allclose(ours, small.reference_logps(model, pairs.prompt[i], ids).detach().numpy(), atol=1e-5)


@pytest.mark.usefixtures("megatron")
def test_provenance_names_the_reference(scored: Path, llama: Path) -> None:
    with open_reader(scored, "scored_pairs") as reader:
        assert reader.info.producer == "ref-logprobs"
        assert reader.info.digests["reference"] == weights_digest(resolve(llama))
        assert reader.info.settings["reference_precision"] == "float32"
        assert reader.info.settings["kernels"].startswith(("c ", "torch "))


def test_a_pipe_gives_the_same_bytes(scored: Path, pairs_file: Path, llama: Path) -> None:
    options = ("--policy", llama, "--precision", "float32", "--micro-batch-tokens", 64)
    done = check("ref-logprobs", "-", "-o", "-", *options, input=pairs_file.read_bytes())
    assert done.stdout == scored.read_bytes()


def test_reuse_scores_only_what_is_new(scored: Path, llama: Path, tmp_path: Path) -> None:
    known, new = small.random_pairs(12, seed=21), small.random_pairs(3, seed=22)
    sides = zip((known.prompts, known.chosen, known.rejected), (new.prompts, new.chosen, new.rejected), strict=True)
    more = small.write_pairs(tmp_path / "more.arrow", small.Tokens(*(old + extra for old, extra in sides)))
    options = ("--policy", llama, "--precision", "float32")
    done = check("ref-logprobs", more, "-o", tmp_path / "out.arrow", *options, "--reuse", scored)
    assert b"15 pairs scored, 12 of them reused" in done.stderr
    assert b"other kernels" not in done.stderr
    assert read(tmp_path / "out.arrow").slice(0, 12).to_pylist() == read(scored).to_pylist()


@pytest.mark.slow
def test_kernels_are_chosen_by_the_environment_recorded_and_said(
    scored: Path, pairs_file: Path, llama: Path, tmp_path: Path
) -> None:
    options = ("-o", tmp_path / "out.arrow", "--policy", llama, "--precision", "float32")
    done = check("ref-logprobs", pairs_file, *options, "--reuse", scored, env={**os.environ, VARIABLE: "torch"})
    lines = done.stderr.decode().splitlines()
    assert lines[0] == f"ref-logprobs: warning: kernels: torch instead of c: {VARIABLE} is torch"
    with open_reader(tmp_path / "out.arrow", "scored_pairs") as reader, open_reader(scored, "scored_pairs") as old:
        kernels = reader.info.settings["kernels"]
        names = f"({old.info.settings['kernels']}, new pairs by {kernels})"
        assert lines[1] == f"ref-logprobs: warning: {scored}: was scored by other kernels {names}: they round otherwise"
    assert kernels.startswith("torch ")
    done = run("ref-logprobs", pairs_file, *options, env={**os.environ, VARIABLE: "gpu", "CUDA_VISIBLE_DEVICES": ""})
    assert error_line(done, "ref-logprobs") == f"{VARIABLE} is gpu, which cannot be: there is no GPU: unset {VARIABLE}"
    assert done.returncode == 2


TRAIN = (
    "policy.train_global_batch_size=4",
    "policy.precision=float32",
    "policy.max_total_sequence_length=64",
    "dpo.max_num_steps=1",
    "checkpointing.enabled=false",
)


@pytest.mark.slow
def test_scores_serve_every_form_of_their_policy_and_older_ones_the_files_they_name(
    scored: Path, llama: Path, tmp_path: Path
) -> None:
    imported = tmp_path / "imported"
    check("ckpt-export", llama, "-o", imported, "--to", "megatron")
    with open_reader(scored, "scored_pairs") as reader:
        batch, info = reader.read_all().to_batches()[0], reader.info
    older = tmp_path / "older.arrow"
    with open_writer(older, replace(info, digests={**info.digests, "reference": resolve(llama).files_digest()})) as writer:
        writer.write(batch)

    def train(pairs: Path, policy: Path) -> Done:
        return run("dpo-train", pairs, "--policy", policy, "--run-dir", tmp_path / "run", *TRAIN)

    done = train(scored, imported)
    assert done.returncode == 0, done.stderr.decode()
    done = train(older, llama)
    assert done.returncode == 0, done.stderr.decode()
    line = f"dpo-train: {older}: was scored by an earlier version, which knew weights by their files: these are the same files"
    assert line in done.stderr.decode().splitlines()
    message = (
        f"{older}: was scored by another policy than --policy, or by an earlier version from other files of its weights: "
        "run ref-logprobs with this policy, or set dpo.allow_reference_mismatch=true"
    )
    assert error_line(train(older, imported), "dpo-train") == message


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_write_what_one_does(scored: Path, pairs_file: Path, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.arrow"
    options = ("--precision", "float32", "--micro-batch-tokens", 64)
    torchrun(2, "ref-logprobs", pairs_file, "-o", out, "--policy", llama, *options)
    ours, theirs = Pairs.of(read(out)), Pairs.of(read(scored))
    assert ours.pair_ids == theirs.pair_ids
    assert ours.ref_chosen is not None
    assert theirs.ref_chosen is not None
    for i in range(len(ours)):
        assert np.allclose(ours.ref_chosen[i], theirs.ref_chosen[i], atol=1e-5)


def changed(path: Path, target: Path, **columns: object) -> None:
    """`path` with other values in its second row, its checksums right again."""
    with open_reader(path, "tokenized_pairs", "scored_pairs") as reader:
        rows, info = reader.read_all().to_pylist(), reader.info
    rows[1] |= columns
    with open_writer(target, info) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))


def without_a_number(policy: Path, target: Path) -> Path:
    """`policy` with a NaN in its last norm."""
    shutil.copytree(policy, target)
    weights = load_file(target / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_no_output(pairs_file: Path, scored: Path, llama: Path, tmp_path: Path) -> None:
    content = pairs_file.read_bytes()
    (tmp_path / "cut.arrow").write_bytes(content[: len(content) - 300])
    beyond = small.random_pairs(2)
    beyond.chosen[1][0] = small.VOCAB
    small.write_pairs(tmp_path / "beyond.arrow", beyond)
    small.write_pairs(tmp_path / "long.arrow", small.random_pairs(3, longest=200, seed=2))
    flipped = bytearray(content)
    flipped[content.index(np.int32(small.random_pairs(12, seed=21).prompts[5]).tobytes())] ^= 1
    (tmp_path / "flipped.arrow").write_bytes(flipped)
    changed(pairs_file, tmp_path / "named.arrow", chosen_ids=[7, 7])
    changed(scored, tmp_path / "uneven.arrow", ref_chosen_logps=[-1.0] * 30)
    for arguments, message in (
        ((tmp_path / "none.arrow",), "no such file"),
        ((tmp_path / "cut.arrow",), "tests failed or was killed"),
        ((tmp_path / "beyond.arrow",), f"has token id {small.VOCAB}; the policy knows {small.VOCAB} tokens"),
        ((tmp_path / "long.arrow",), "the policy has 128 positions"),
        (
            (tmp_path / "flipped.arrow",),
            "the stream from tests is damaged in rows 1 to 12: its checksum differs",
        ),
        ((tmp_path / "named.arrow",), "has a pair_id that is not the digest of its token ids (line 2 of the input)"),
        ((pairs_file, "--reuse", scored, "--precision", "bfloat16"), "cannot be reused"),
        (
            (pairs_file, "--reuse", tmp_path / "uneven.arrow", "--precision", "float32"),
            "has ref_chosen_logps of 30 log-probs for ",
        ),
    ):
        done = run("ref-logprobs", *arguments, "-o", tmp_path / "out.arrow", "--policy", llama)
        assert message in error_line(done, "ref-logprobs")
        assert done.returncode == 1
        assert not (tmp_path / "out.arrow").exists()
    done = run(
        "ref-logprobs", pairs_file, "-o", tmp_path / "out.arrow", "--policy", without_a_number(llama, tmp_path / "policy")
    )
    words = (
        f"{tmp_path}/policy: has nan in ref_chosen_logps (line 1 of the input), which is no log-prob: are its weights damaged?"
    )
    assert error_line(done, "ref-logprobs") == words
    assert not (tmp_path / "out.arrow").exists()
    done = run("ref-logprobs", pairs_file, "-o", tmp_path / "no" / "out.arrow", "--policy", llama)
    assert "no such file or directory" in error_line(done, "ref-logprobs")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_producer_that_died_is_named(pairs_file: Path, llama: Path, tmp_path: Path) -> None:
    done = run("ref-logprobs", "-", "-o", tmp_path / "out.arrow", "--policy", llama, input=b"")
    assert "did the stage before it fail?" in error_line(done, "ref-logprobs")
    half = pairs_file.read_bytes()[:-300]
    done = run("ref-logprobs", "-", "-o", tmp_path / "out.arrow", "--policy", llama, input=half)
    assert "the stream from tests" in error_line(done, "ref-logprobs")
    assert not (tmp_path / "out.arrow").exists()


@pytest.mark.slow
def test_pairs_of_another_tokenizer_are_warned_of(tmp_path: Path, policy: Path) -> None:
    """Its ids are within the vocabulary and mean other texts."""
    (tmp_path / "other").mkdir()
    for file in policy.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "other" / "tokenizer.json"
    tokenizer = orjson.loads(config.read_bytes())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["o"] = vocab["o"], vocab["a"]
    config.write_bytes(orjson.dumps(tokenizer))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Who?", "chosen": "Ada.", "rejected": "Nobody at all."}\n')
    said = {}
    for name, made_with in (("own", policy), ("other", tmp_path / "other")):
        pairs, scored = tmp_path / f"{name}.arrow", tmp_path / f"{name}.scored.arrow"
        check("preference-tokenize", tmp_path / "rows.jsonl", "-o", pairs, "--tokenizer", made_with)
        score = ("ref-logprobs", pairs, "-o", scored, "--policy", policy, "--precision", "float32")
        train = ("dpo-train", scored, "--policy", policy, "--run-dir", tmp_path / name, "policy.train_global_batch_size=1")
        settings = ("policy.precision=float32", "dpo.max_num_steps=1", "checkpointing.enabled=false")
        said[name] = check(*score).stderr + check(*train, *settings).stderr
    assert said["other"].decode().count(f"was tokenized with another tokenizer than {policy} has\n") == 2
    assert b"another tokenizer" not in said["own"]


def test_pairs_that_longrope_turns_in_both_ways_are_found_before_anything_is_computed(tmp_path: Path) -> None:
    """Also by dpo-train; both such pairs are windows behind the first, and behind each other."""
    lists = {"short_factor": [1.0, 1.3, 2.0], "long_factor": [3.0, 4.0, 7.0], "partial_rotary_factor": 0.75}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, **lists}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 24}
    policy = families.write_model(tmp_path / "policy", "phi3", **changes)
    lengths = [(20, 4, 3), (20, 5, 9), *[(4, 5, 6)] * 150, (20, 5, 4), *[(4, 5, 6)] * 150, (3, 21, 22)]

    def ids(number: int, place: int) -> np.ndarray:
        return np.full(lengths[number][place], number % 90 + 3, dtype=np.int32)

    sides = [[ids(number, place) for number in range(len(lengths))] for place in range(3)]
    said = (
        "has 2 pairs of which one text has more than 24 tokens and the other has not, which the policy's longrope turns otherwise, "
        "and so their prompt (the first: line 153 of the input: 25 tokens with the chosen and 24 with the rejected response): "
        "tokenize with --max-length 24, or leave those pairs out"
    )
    pairs = small.write_pairs(tmp_path / "pairs.arrow", small.Tokens(*sides))
    scoring = run("ref-logprobs", pairs, "-o", tmp_path / "scored.arrow", "--policy", policy, "--micro-batch-tokens", 64)
    training = run("dpo-train", pairs, "--policy", policy, "--run-dir", tmp_path / "run", "dpo.preference_loss=simpo")
    for done, program in ((scoring, "ref-logprobs"), (training, "dpo-train")):
        assert error_line(done, program) == f"{pairs}: {said}", program
    assert not (tmp_path / "scored.arrow").exists()
    assert not (tmp_path / "run").exists()
