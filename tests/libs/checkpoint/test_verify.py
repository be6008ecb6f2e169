"""`--verify` re-scores what was written and removes it where it scores otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo import file_digests
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


def test_a_wrong_weight_is_found_and_nothing_is_left(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_dpo.checkpoint import export as module

    write = module.hf.save

    def write_wrongly(model, folder: Path, dtype, tokenizer, **rest) -> None:
        write(model, folder, dtype, tokenizer, **rest)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1.05
        save_file(tensors, folder / "model.safetensors")
        file_digests.write(folder, "*.safetensors*")  # or what is listed of it would differ first

    monkeypatch.setattr(module.hf, "save", write_wrongly)
    with pytest.raises(UserError, match=f"{tmp_path / 'out'}: does not score as the source does: log-probs differ by up to"):
        module.export(resolve(llama), tmp_path / "out", "hf", None, verify=2)
    assert list(tmp_path.iterdir()) == []
    assert module.export(resolve(llama), tmp_path / "out", "hf", None) is None  # unverified it would have stayed


def test_probe_scores_are_those_of_transformers(llama: Path) -> None:
    from nemotron_dpo.checkpoint import probe
    from nemotron_dpo.checkpoint.policy import open_policy

    model = open_policy(resolve(llama), None)
    rows, oracle = probe.rows(3, model.architecture), small.load_llama(llama)
    expected = []
    for pair in rows.to_pylist():
        prompt = np.array(pair["prompt_ids"])
        for side in ("chosen_ids", "rejected_ids"):
            expected.append(small.reference_logps(oracle, prompt, np.array(pair[side])).detach().numpy())
    assert np.allclose(probe.score(model, rows), np.concatenate(expected), atol=1e-5)


def test_probe_rows_are_always_the_same_and_fit_the_policy(llama: Path) -> None:
    from dataclasses import replace

    from nemotron_dpo.checkpoint import probe
    from nemotron_dpo.checkpoint.policy import read_architecture

    architecture = read_architecture(resolve(llama))
    assert probe.rows(4, architecture).equals(probe.rows(4, architecture))
    for pair in probe.rows(50, replace(architecture, vocab_size=5, max_position_embeddings=16)).to_pylist():
        tokens = [*pair["prompt_ids"], *pair["chosen_ids"], *pair["rejected_ids"]]
        assert max(tokens) < 5
        assert len(tokens) <= 16
        assert min(len(pair[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")) >= 1


@pytest.mark.parametrize("bad", [float("nan"), 0.01])
def test_what_is_not_finite_or_differs_is_refused(bad: float) -> None:
    from nemotron_dpo.checkpoint import probe

    before = torch.zeros(4).numpy()
    after = before.copy()
    after[2] = bad
    with pytest.raises(UserError, match="does not score as the source does"):
        probe.compare(before, after)
    assert probe.compare(before, before) == 0
