"""What strangers try, through the programs: every one ends in one line, keeps its secrets, and soon. tests/fuzz has what they write."""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fuzz.inputs.models import sound_configs
from fuzz.target import as_json
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.inputs import read_chunks
from nemotron_dpo.preferences.lines import TooLong
from support.forged import Payload
from support.programs import run

LONG = "n" * 300  # no file system has such a name
SECRET = "hf_" + "q8W2" * 9
STEP = ("run", "rl/nemo_rl/dpo", "-c", "tiny", "--dry-run")
TOO_LONG = "file name too long"
CASES: list[tuple[str, list[str], str]] = [
    ("nemotron-steps", [*STEP, "dpo.seed=-1"], '"dpo.seed" '),
    ("nemotron-steps", [*STEP, f"dpo.seed={10**23}"], '"dpo.seed" is a number of 77 bits'),
    ("nemotron-steps", [*STEP, f"dpo.max_num_steps={10**400}"], '"dpo.max_num_steps" '),
    ("nemotron-steps", [*STEP, "policy.train_global_batch_size=-4"], '"policy.train_global_batch_size" '),
    ("nemotron-steps", [*STEP, "--name", LONG], ""),
    ("nemotron-steps", [*STEP, "checkpointing.checkpoint_dir=/x-${oc.env:HF_TOKEN}"], "HF_TOKEN"),
    ("nemotron-steps", [*STEP, "logger.wandb.name=${oc.env:HF_TOKEN}"], "HF_TOKEN"),
    ("nemotron-steps", [*STEP, "data.train.prompt_file=\x1b[2Ja\nnemotron-steps: error: forged"], r"\x1b[2Ja\n"),
    ("nemotron-steps", ["run", "rl/nemo_rl/dpo", "-c", LONG], ""),
    ("nemotron-steps", ["show", "../" * 100 + "etc"], ""),
    ("preference-tokenize", ["{d}/rows", "-o", "{d}/o", "--tokenizer", "{d}/none", "--seed", str(10**23)], ""),
    ("preference-tokenize", ["{d}/rows", "-o", "{d}/o", "--tokenizer", LONG], TOO_LONG),
    (
        "preference-tokenize",
        ["{d}/rows", "-o", "{d}/o", "--tokenizer", "{d}/none", "--max-line-bytes", str(1 << 40)],
        "--max-line-bytes",
    ),
    ("ref-logprobs", [LONG, "-o", "{d}/o", "--policy", "{d}/none"], TOO_LONG),
    ("ref-logprobs", ["{d}/rows", "-o", "{d}/o", "--policy", "{d}/pickled"], ""),
    ("dpo-train", ["{d}/rows", "--policy", "{d}/none", "--run-dir", LONG], ""),
    ("ckpt-export", [LONG, "-o", "{d}/o", "--to", "hf"], TOO_LONG),
    ("ckpt-export", ["{d}/pickled", "-o", "{d}/o", "--to", "megatron"], "only safetensors weights are read"),
    ("dpo-report", [LONG, "-o", "{d}/o"], ""),
]


@pytest.mark.slow
def test_every_program_ends_in_one_line(tmp_path: Path):
    (tmp_path / "rows").write_bytes(b"\0\xff")
    _pickled_model(tmp_path)
    before = sorted(os.listdir(tmp_path))
    for program, arguments, expected in CASES:
        given = [word.replace("{d}", str(tmp_path)) for word in arguments]
        done = run(program, *given, cwd=tmp_path, env={**os.environ, "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1"})
        said = done.stderr.decode()
        assert done.returncode in (1, 2), (program, arguments, said)
        errors = [line for line in said.splitlines() if not line.startswith((f"{program}: warning: ", f"{program}: tiny"))]
        assert len(errors) == 1, (program, arguments, said[-2000:])
        assert errors[0].startswith(f"{program}: error: "), errors
        assert expected in errors[0], (program, arguments, errors)
        assert "\x1b" not in said
        assert SECRET not in said + done.stdout.decode()
        assert sorted(os.listdir(tmp_path)) == before, (program, arguments)


def _pickled_model(folder: Path) -> None:
    """As transformers wrote models before there was safetensors: reading it would make a folder."""
    (folder / "pickled").mkdir()
    (folder / "pickled" / "config.json").write_bytes(as_json(sound_configs()[2]))
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        (folder / "pickled" / name).write_bytes(pickle.dumps(Payload(folder / "ran")))


PACKERS: dict[str, Callable[[bytes], Any]] = {
    "gz": functools.partial(gzip.compress, compresslevel=1),
    "xz": functools.partial(lzma.compress, preset=0),
    "zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}
ZEROS = bytes(32 << 20)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_is_not_held(suffix: str, tmp_path: Path):
    """Kilobytes that stand for 32 MB: as a line, as a string in a JSON array, and as brackets in each other."""
    for content, told in (
        (b'{"prompt": "' + ZEROS + b'"}\n', [TooLong()]),
        (b'[{"prompt": "' + ZEROS + b'"}]', [TooLong()]),
        (ZEROS.replace(b"\0", b"["), "its JSON is nested more than 1100 levels deep"),
    ):
        path = tmp_path / f"rows.json.{suffix}"
        path.write_bytes(PACKERS[suffix](content))
        assert path.stat().st_size < 1 << 20
        tracemalloc.start()
        try:
            rows = [row for chunk in read_chunks([str(path)], 1 << 20) for row in chunk.rows]
        except UserError as error:
            rows = error.message.rpartition(": ")[2]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == told
        assert peak < 8 << 20
