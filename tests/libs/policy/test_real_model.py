"""SmolLM2-135M-Instruct, a model no one here made: our logits and log-probs against transformers'."""

from __future__ import annotations

import pytest
import torch

from nemotron_dpo.policy.rows import pack_row
from support.real_assets import smollm2

PROMPT = "<|im_start|>user\nWhich planet is the largest?<|im_end|>\n<|im_start|>assistant\n"
CHOSEN, REJECTED = "Jupiter is the largest planet.<|im_end|>", "I do not care.<|im_end|>"


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("megatron")
def test_float32_logits_and_logps_equal_transformers() -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    folder = smollm2()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encode = lambda text: torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731 - a name for the type; a line is enough
    prompt, chosen, rejected = encode(PROMPT), encode(CHOSEN), encode(REJECTED)
    ours = open_policy(resolve(folder), "float32", max_length=512)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = pack_row([prompt.numpy()], [chosen.numpy()], [rejected.numpy()])
    with torch.no_grad():
        logits = ours.all_logits(row)[: row.segments[0].rejected]
        expected = theirs(torch.cat([prompt, chosen])[None]).logits[0]
        assert (logits - expected).abs().max() <= 1e-4  # of logits up to 25, where a float32 is 2e-6 from the next
        logps, start = ours(row), 0
        for response in (chosen, rejected):
            scores = theirs(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            wanted = scores.gather(1, response[:, None]).sum()
            assert logps[start : start + len(response)].sum().item() == pytest.approx(wanted.item(), rel=1e-4)
            start += len(response)
    assert logps[: len(chosen)].mean() > logps[len(chosen) :].mean()  # a model that answers questions
