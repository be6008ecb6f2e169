#!/usr/bin/env python3
"""DPO of a hybrid by transformers and torch alone, for bench_hybrid.py to time.

  python hybrid_peer.py SCORED POLICY OUT BATCH PRECISION

SCORED is a stream of ref-logprobs, so that both train on the same pairs with the same reference. OUT gets seconds and losses.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

BETA = 0.05


def main() -> None:
    """One epoch in the order of the stream."""
    scored, policy, out, batch, precision = sys.argv[1:]
    with pa.OSFile(scored) as file:
        pairs = pa.ipc.open_stream(file).read_all().to_pylist()
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=getattr(torch, precision)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    seconds, losses = [], []
    for start in range(0, len(pairs) - int(batch) + 1, int(batch)):
        began = time.perf_counter()
        loss = _loss(model, pairs[start : start + int(batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    Path(out).write_text(json.dumps({"step_seconds": seconds, "losses": losses}), encoding="utf-8")


def _loss(model: Any, pairs: list[dict[str, Any]]) -> Tensor:
    """DPO's loss of the pairs, two sequences each, all in one padded batch."""
    sequences = [(pair["prompt_ids"], pair[f"{side}_ids"]) for side in ("chosen", "rejected") for pair in pairs]
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask, scored = torch.zeros_like(ids), torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, : len(prompt) + len(response)] = 1
        scored[row, len(prompt) : len(prompt) + len(response)] = True
    logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    logps = -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    sums = (logps * scored[:, 1:]).sum(1)
    reference = torch.tensor([sum(pair[f"ref_{side}_logps"]) for side in ("chosen", "rejected") for pair in pairs])
    chosen, rejected = (sums - reference).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


if __name__ == "__main__":
    main()
