"""Make a policy out of nothing: random Llama-shaped weights and a tokenizer trained on preference pairs, as an HF folder.

python -m nemotron_dpo.steps.tiny_policy PAIRS.jsonl... -o DIR [--hybrid]

About a million parameters, float32, tied embeddings; byte-level BPE with ChatML turns. Seeded, so the same pairs give the
same bytes. What it is fine-tuned into is the starting policy of the `tiny` config. With --hybrid it has the layers of
Nemotron-3-Nano instead: a recurrence, attention, a dense part and experts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo.published import replacing
from nemotron_dpo.steps import tiny_hybrid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The name by which a config asks for the policy that is fine-tuned from this one.
TINY_SFT = "nemotron-dpo/tiny-sft"
HIDDEN, FFN, LAYERS, HEADS, GROUPS, HEAD_DIM = 128, 384, 4, 4, 2, 32
MAX_VOCAB, MAX_POSITIONS, SEED, INIT_STD = 1024, 4096, 1, 0.02
PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    """Write the HF folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path)
    parser.add_argument("-o", dest="folder", required=True, type=Path)
    parser.add_argument("--hybrid", action="store_true")
    arguments = parser.parse_args()
    write_policy(arguments.pairs, arguments.folder, hybrid=arguments.hybrid)


def write_policy(pairs: Sequence[Path], folder: Path, *, hybrid: bool = False) -> None:
    """Train the tokenizer on every text in `pairs`, draw the weights, and write both into `folder`.

    What is there is replaced whole, so that two which make one policy at once do not disturb each other.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts(pairs))
    with replacing(folder / "tokenizer.json") as path:
        tokenizer.save(str(path))
    num_tokens = tokenizer.get_vocab_size()
    ids = {name: tokenizer.token_to_id(token) for name, token in (("pad", PAD), ("bos", TURN), ("eos", END))}
    token_ids = {f"{name}_token_id": number for name, number in ids.items()}
    config, weights = architecture, random_weights
    if hybrid:
        config, weights = tiny_hybrid.architecture, tiny_hybrid.random_weights
    with replacing(folder / "model.safetensors") as path:
        save_file(weights(num_tokens), path, metadata={"format": "pt"})
    _write_json(folder / "config.json", {**config(num_tokens), **token_ids})
    _write_json(folder / "generation_config.json", token_ids)
    special = {"pad_token": PAD, "bos_token": None, "eos_token": END, "unk_token": None}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "model_max_length": MAX_POSITIONS}
    _write_json(folder / "tokenizer_config.json", {**kind, **special, "chat_template": CHAT_TEMPLATE})


def texts(pairs: Sequence[Path]) -> Iterator[str]:
    """The prompt and both responses of every row, and the roles that the chat template writes."""
    yield from ("user\n", "assistant\n", "system\n")
    for path in pairs:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from json.loads(line).values()


def train_tokenizer(corpus: Iterator[str], vocab_size: int = MAX_VOCAB) -> Tokenizer:
    """Byte-level BPE, so that any text can be encoded, with the three special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment] - tokenizers' stubs lack the setter
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment] - tokenizers' stubs lack the setter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, TURN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def random_weights(num_tokens: int) -> dict[str, Any]:
    """Every tensor by its Hugging Face name, float32: normal with std 0.02, norms at one."""
    import numpy

    draw = numpy.random.default_rng(SEED)

    def normal(*shape: int) -> Any:
        return (INIT_STD * draw.standard_normal(shape)).astype(numpy.float32)

    ones = numpy.ones(HIDDEN, numpy.float32)
    weights = {"model.embed_tokens.weight": normal(num_tokens, HIDDEN), "model.norm.weight": ones}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        weights |= {f"{layer}.{norm}.weight": ones for norm in ("input_layernorm", "post_attention_layernorm")}
        weights |= {
            f"{layer}.self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": normal(GROUPS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": normal(GROUPS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM),
            f"{layer}.mlp.gate_proj.weight": normal(FFN, HIDDEN),
            f"{layer}.mlp.up_proj.weight": normal(FFN, HIDDEN),
            f"{layer}.mlp.down_proj.weight": normal(HIDDEN, FFN),
        }
    return weights


def architecture(num_tokens: int) -> dict[str, Any]:
    """config.json of the model, rope in the forms of transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "vocab_size": num_tokens,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
