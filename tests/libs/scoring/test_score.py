"""Scoring divided over data-parallel replicas: each computes its part, and all have the scores of all."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import execute_job

SCRIPT = """
import sys
import numpy as np
import pyarrow as pa
from nemotron_dpo.policy import parallel
parallel.initialize()
from nemotron_dpo.checkpoint.policy import open_policy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import score
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.sources import resolve
from nemotron_dpo.streams import open_reader
folder, source, out = sys.argv[1:]
computed, schedule = [], score.run_schedule
score.run_schedule = lambda *a, **k: computed.append(sum(batch.row.num_pairs for batch in a[1])) or schedule(*a, **k)
model = open_policy(resolve(folder), "float32").eval()
with open_reader(source, "tokenized_pairs") as reader:
    table = reader.read_all().combine_chunks()
told, pairs = [], Pairs.of(table.to_batches()[0])
scores = WindowScores.of(pairs)
score.score_rows(model, pairs, range(len(pairs)), scores, 64, told=told.append)
flat = np.concatenate([side for row in range(len(pairs)) for side in scores.row(row)])
np.savez(f"{out}.{parallel.data_rank()}.npz", flat=flat, computed=computed, told=told)
parallel.shut_down()
"""


def _scored(processes: int, folder: Path, pairs: Path, out: Path) -> list[dict[str, np.ndarray]]:
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    done = execute_job(processes, [sys.executable, *map(str, (script, folder, pairs, out))])
    assert done.returncode == 0, done.stderr.decode()
    return [dict(np.load(f"{out}.{rank}.npz")) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_every_rank_scores_its_part_and_knows_all(llama: Path, tmp_path: Path) -> None:
    file = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(10, seed=21))
    with open_reader(file, "tokenized_pairs") as reader:
        pairs = Pairs.of(reader.read_all())
    model = small.load_llama(llama)
    expected = np.concatenate(
        [
            small.reference_logps(model, pairs.prompt[i], side[i]).detach().numpy()
            for i in range(10)
            for side in (pairs.chosen, pairs.rejected)
        ]
    )
    ranks = _scored(3, llama, file, tmp_path / "three")
    assert sum(int(rank["computed"].sum()) for rank in ranks) == 10
    for rank in ranks:
        assert rank["computed"].sum() >= 2
        assert np.abs(rank["flat"] - expected).max() <= 1e-5
        assert rank["told"].sum() == 10
    assert max(len(rank["told"]) for rank in ranks) > 1, "who waits hears of a window when it is over"


@pytest.mark.usefixtures("megatron")
def test_order_of_responses_has_an_inverse() -> None:
    from nemotron_dpo.policy.rows import join_responses, pack_row, split_responses

    pairs = small.random_pairs(5, seed=2)
    joined = join_responses(pairs.chosen, pairs.rejected)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    assert row.targets_R.tolist() == joined.tolist()
    lengths = [np.array([len(ids) for ids in side]) for side in (pairs.chosen, pairs.rejected)]
    for i, (chosen, rejected) in enumerate(split_responses(joined, *lengths)):
        assert chosen.tolist() == pairs.chosen[i].tolist()
        assert rejected.tolist() == pairs.rejected[i].tolist()
        of_pair = row.targets_R[(row.response_R // 2) == i]
        assert of_pair.tolist() == [*chosen.tolist(), *rejected.tolist()]
