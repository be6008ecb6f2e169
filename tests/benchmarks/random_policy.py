#!/usr/bin/env python3
"""Make a random Llama-shaped policy of a known size and pairs of random tokens: random_policy.py SIZE -o DIR [--pairs ...]

Writes DIR/config.json and DIR/model.safetensors (bfloat16), and for each PROMPT,RESPONSE,COUNT of --pairs the file
DIR/PROMPT-RESPONSE-COUNT.arrow with that many pairs of a prompt and two responses of so many tokens. Chosen responses are of
low ids and rejected ones of high ids, so that there is something to learn. --experts makes a mixture, Mixtral-shaped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

# hidden, feed-forward, layers, heads, key/value heads, vocabulary; the last three are the shapes of SmolLM2 and Llama-3.2
SIZES = {
    "1M": (128, 384, 4, 4, 2, 1024),
    "10M": (256, 768, 8, 4, 2, 8192),
    "50M": (448, 1216, 16, 7, 7, 16384),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "360M": (960, 2560, 32, 15, 5, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=[*SIZES, "none"], help="none: pairs alone")
    parser.add_argument("-o", dest="folder", type=Path, required=True)
    parser.add_argument("--pairs", nargs="*", default=[], metavar="PROMPT,RESPONSE,COUNT")
    parser.add_argument("--vocabulary", type=int, default=1000, help="ids of the pairs' tokens are below it")
    parser.add_argument("--experts", type=int, default=0, help="feed-forward layers of so many experts, two a token")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.size != "none":
        write_policy(options.size, options.folder, options.experts)
    for spelled in options.pairs:
        prompt, response, count = map(int, spelled.split(","))
        write_pairs(options.folder / f"{prompt}-{response}-{count}.arrow", prompt, response, count, options.vocabulary)


def config(size: str, experts: int = 0) -> dict[str, object]:
    """config.json of one of SIZES."""
    hidden, ffn, layers, heads, groups, vocabulary = SIZES[size]
    mixture = {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": None}
    return {
        "architectures": ["MixtralForCausalLM" if experts else "LlamaForCausalLM"],
        **(mixture if experts else {"model_type": "llama"}),
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": not experts,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
    }


def write_policy(size: str, folder: Path, experts: int = 0) -> None:
    """config.json and weights of std 0.02, norms at one. They are drawn on a GPU where there is one, others than on a CPU."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (torch.randn(shape, device=device) * 0.02).bfloat16().cpu()
        for name, shape in _shapes(size, experts)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(size, experts), indent=2) + "\n", encoding="utf-8")


def write_pairs(path: Path, prompt: int, response: int, count: int, vocabulary: int) -> None:
    """`count` pairs of random ids, as preference-tokenize would have written them."""
    import numpy as np

    from nemotron_dpo.preferences.columns import Row, pair_id, to_batches
    from nemotron_dpo.preferences.encoding import PairIds
    from nemotron_dpo.streams import StreamInfo, open_writer

    draw = np.random.default_rng(0)

    def ids(length: int, low: int = 3, high: int = vocabulary) -> list[int]:
        return draw.integers(low, high, length).tolist()

    middle = vocabulary // 2

    with open_writer(path, StreamInfo("tokenized_pairs", "benchmarks", "0")) as writer:
        pairs = (PairIds(ids(prompt), ids(response, high=middle), ids(response, middle)) for _ in range(count))
        for batch in to_batches(Row(number, pair, pair_id(pair)) for number, pair in enumerate(pairs, start=1)):
            writer.write(batch)


def _shapes(size: str, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, layers, heads, groups, vocabulary = SIZES[size]
    narrow = groups * (hidden // heads)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if experts:
        yield "lm_head.weight", (vocabulary, hidden)
    for n in range(layers):
        attention, mlp = f"model.layers.{n}.self_attn", f"model.layers.{n}.mlp"
        yield f"model.layers.{n}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{n}.post_attention_layernorm.weight", (hidden,)
        yield from ((f"{attention}.{part}_proj.weight", (hidden, hidden)) for part in "qo")
        yield from ((f"{attention}.{part}_proj.weight", (narrow, hidden)) for part in "kv")
        if experts:
            yield from _mixture(f"model.layers.{n}.block_sparse_moe", hidden, ffn, experts)
            continue
        yield from ((f"{mlp}.{part}_proj.weight", (ffn, hidden)) for part in ("gate", "up"))
        yield f"{mlp}.down_proj.weight", (hidden, ffn)


def _mixture(layer: str, hidden: int, ffn: int, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{layer}.gate.weight", (experts, hidden)
    for n in range(experts):
        yield from ((f"{layer}.experts.{n}.{part}.weight", (ffn, hidden)) for part in ("w1", "w3"))
        yield f"{layer}.experts.{n}.w2.weight", (hidden, ffn)


if __name__ == "__main__":
    main()
