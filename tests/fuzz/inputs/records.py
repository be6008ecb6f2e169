"""Streams, and what runs and jobs leave."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from fuzz.target import Target, as_is, as_json, as_lines, as_yaml, put


def _streams() -> list[Any]:
    import numpy as np

    from support import small

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.arrow"
        small.write_pairs(path, small.random_pairs(3))
        made = [path.read_bytes()]
        from support.report_runs import sightings, write_log

        write_log(Path(folder), [sightings(1, "train", [0.1, 0.2]), sightings(2, "validation-default", list(np.zeros(3)))])
        return [*made, (Path(folder) / "pairs_log.arrow").read_bytes()]


def _read_stream(folder: Path, content: bytes) -> object:
    from nemotron_dpo.report import pair_log
    from nemotron_dpo.streams import open_reader

    path = put(folder, "pairs_log.arrow", content)
    pair_log.read(folder)
    with open_reader(path, "scored_pairs", "tokenized_pairs") as reader:
        return reader.read_all().num_rows, reader.count_rows()


def _stream_infos() -> list[Any]:
    return [
        {
            "schema": "tokenized_pairs",
            "producer": "x",
            "producer_version": "0",
            "digests": {"input": "sha256:a"},
            "settings": {"a": [1]},
            "version": 3,
        }
    ]


def _read_stream_info(folder: Path, content: bytes) -> object:
    import zlib

    import pyarrow as pa

    from nemotron_dpo.streams.checksum import CHECKSUM_KEY, encoded
    from nemotron_dpo.streams.schema import METADATA_KEY, TOKENIZED_PAIRS

    buffer = io.BytesIO()
    metadata = {METADATA_KEY: content, CHECKSUM_KEY: encoded(zlib.crc32(content))}
    with pa.ipc.new_stream(buffer, TOKENIZED_PAIRS.with_metadata(metadata)):
        pass
    return _read_stream(folder, buffer.getvalue())


def _resumes() -> list[Any]:
    from dataclasses import asdict

    from nemotron_dpo.training.record import Totals
    from nemotron_dpo.training.resume import Identity

    totals, identity = (
        Totals(2, 123.0, 0.3, {"train:loss": 0.5}, state={"mean": 0.1}),
        Identity("d", "p", {"a": [1, 2]}, {"b": None}, {"v": "x"}),
    )
    return [
        {
            "format": 4,
            "step": 2,
            "totals": asdict(totals),
            "identity": asdict(identity),
            "files": {"training_info.json": hashlib.sha256(b"{}").hexdigest()},
        }
    ]


def _read_resume(folder: Path, content: bytes) -> object:
    import orjson

    from nemotron_dpo.training.resume import Identity, ResumeState, _digest, check_identity

    step = folder / "step_2"
    try:  # under its own digest, or nothing but the digest would ever be looked at
        tree = orjson.loads(content)
        content = orjson.dumps({**tree, "digest": _digest(tree)}) if isinstance(tree, dict) else content
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    put(step, "resume.json", content)
    put(step, "training_info.json", b"{}")
    return check_identity(ResumeState.read(step).identity, Identity("d", "p", {"a": [1]}), step)


def _read_training_info(folder: Path, content: bytes) -> object:
    from nemotron_dpo.step_folders import badness, best_of, policy_of

    step = folder / "step_2"
    put(step, "training_info.json", content)
    put(step, "config.yaml", b"checkpointing: {metric_name: 'val:loss', higher_is_better: false}\n")
    return badness(step, "val:loss", True), best_of([step]), policy_of(folder, "best")


def _run_files() -> list[Any]:
    from support.report_runs import usual_rows, write_run

    with tempfile.TemporaryDirectory() as folder:
        return [json.loads((write_run(Path(folder), usual_rows(4), processes=2) / "run.json").read_bytes())]


def _read_run_file(folder: Path, content: bytes) -> object:
    from nemotron_dpo.model_card.origin import origin_of

    put(folder, "job/job.yaml", content)
    put(folder, "job/state.json", content)
    put(folder, "job/train.yaml", content)
    put(folder, "job/run/run.json", content)
    put(folder, "job/run/checkpoints/step_2/config.yaml", content)
    put(folder, "job/run/checkpoints/step_2/training_info.json", content)
    origin_of(folder / "job/run/checkpoints/step_2")
    return _reported(folder / "job"), _listed(folder)


def _metrics() -> list[Any]:
    from support.report_runs import usual_rows

    return [usual_rows(4), usual_rows(12)]


def _read_metrics(folder: Path, content: bytes) -> object:
    from support.report_runs import usual_rows, write_run

    run = write_run(folder / "job" / "run", usual_rows(2))
    put(run, "metrics.jsonl", content)
    put(folder, "job/job.yaml", b"step: rl/nemo_rl/dpo\n")
    return _reported(run), _listed(folder)


def _reported(run: Path) -> object:
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.report import writing

    try:
        return writing.terminal(writing.page([str(run)], with_text=False))
    except UserError as error:
        return error


def _listed(folder: Path) -> object:
    from nemotron_dpo.jobs import job, listing

    jobs = job.jobs_in(folder)
    return listing.listed(jobs), [listing.as_data(one) for one in jobs]


def _job_files() -> list[Any]:
    return [
        {
            "id": "j",
            "step": "rl/nemo_rl/dpo",
            "created": "2026-01-01T00:00:00+00:00",
            "folder": "/x",
            "name": "n",
            "status": "done",
            "reason": None,
            "config": {"path": "a.yaml", "overrides": ["dpo.max_num_steps=3"]},
            "stages": [{"name": "train", "command": ["dpo-train"]}],
            "checkpointing": {"metric_name": "val:loss", "higher_is_better": False, "checkpoint_dir": "c"},
            "pid": 1,
            "host": "h",
            "dpo": {"reference_policy_kl_penalty": 0.1},
            "policy": {"model_name": "m", "optimizer": {"lr": 1e-4}},
            "total_steps": 2,
        }
    ]


TARGETS = (
    Target("stream", _streams, as_is, _read_stream),
    Target("stream info", _stream_infos, as_json, _read_stream_info),
    Target("resume.json", _resumes, as_json, _read_resume),
    Target(
        "training_info.json",
        lambda: [{"total_steps": 2, "val:loss": 0.5, "consumed_samples": 12}],
        as_json,
        _read_training_info,
    ),
    Target("run.json", _run_files, as_json, _read_run_file),
    Target("job.yaml", _job_files, as_yaml, _read_run_file),
    Target("metrics.jsonl", _metrics, as_lines, _read_metrics),
)
