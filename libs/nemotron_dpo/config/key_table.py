"""The tables of all keys in configs/README.md, made from the code.

python -m nemotron_dpo.config.key_table configs/README.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemotron_dpo.config.dpo_spellings import TRL_NAMES
from nemotron_dpo.config.foreign_keys import NO_MEANING, REFUSED
from nemotron_dpo.config.key_names import known_keys
from nemotron_dpo.config.megatron_spellings import MEGATRON_ADAM, MEGATRON_SCHEDULE
from nemotron_dpo.config.objective_table import objective_tables
from nemotron_dpo.config.spellings import DTENSOR_NAMES, LORA_NAMES
from nemotron_dpo.config.theirs import key_rows

# what stands between two marks in the README -> what makes it
_MADE = "<!-- {}: made by nemotron_dpo.config.key_table -->\n"

_MEGATRON = "policy.megatron_cfg"
# Other names of our keys, for the table of all keys: what `canonical` rewrites.
_OTHER_NAMES = {
    "dpo.loss_type: [A, B], dpo.loss_weights: [1.0, 0.5]": "dpo.preference_loss: {A: 1.0, B: 0.5}",
    "dpo.rpo_alpha": "dpo.sft_loss_weight, with dpo.sft_average_log_probs",
    **{f"dpo.{theirs}": f"dpo.{ours}" for theirs, ours in TRL_NAMES.items()},
    "data.<set>.prompt_file, data.<set>.data_path": "data.<set>.path",
    "data.default.<key>": "data.train.<key> and data.validation.<name>.<key> where they do not say",
    "data.val_data_paths.<name>": "data.validation.<name>.path",
    "data.train: [{<key>: ...}, ...], data.validation likewise": "one set of several, each with the keys of data.train",
    "data.max_input_seq_length": "policy.max_total_sequence_length, which it must equal",
    "policy.optimizer.kwargs.<key>": "policy.optimizer.<key>",
    "policy.tokenizer.chat_template: default": "the tokenizer's own template, as where there is none",
    "policy.tokenizer.chat_template: null": "a template that joins the contents as they are",
    **{f"policy.dtensor_cfg.{theirs}": f"policy.megatron_cfg.{ours}" for theirs, ours in DTENSOR_NAMES.items()},
    **{f"policy.dtensor_cfg.lora_cfg.{theirs}": f"policy.megatron_cfg.peft.{ours}" for theirs, (ours, _) in LORA_NAMES.items()},
    "policy.dtensor_cfg.lora_cfg.match_all_linear": "policy.megatron_cfg.peft.target_modules: []",
    **{f"policy.megatron_cfg.optimizer.{theirs}": f"policy.optimizer.{ours}" for theirs, ours in MEGATRON_ADAM.items()},
    "policy.megatron_cfg.optimizer.{adam_beta1, adam_beta2}": "policy.optimizer.betas",
    "policy.megatron_cfg.optimizer.clip_grad": "policy.max_grad_norm, 0 for null",
    **{f"policy.megatron_cfg.{theirs}": f"policy.scheduler.{ours}" for ours, theirs in MEGATRON_SCHEDULE.items()},
    f"{_MEGATRON}.scheduler.{{start_weight_decay, end_weight_decay}}": "policy.optimizer.weight_decay, which they must equal",
    f"{_MEGATRON}.distributed_data_parallel_config.{{use_distributed_optimizer, grad_reduce_in_fp32}}": f"{_MEGATRON}.<key>",
    "policy.hf_config_overrides.router_aux_loss_coef": f"{_MEGATRON}.moe_aux_loss_coeff",
}


def key_table() -> str:
    """The tables as Markdown: keys that count, other names of them, keys without meaning, refused ones."""
    reasons: dict[str, list[str]] = {}
    for key, reason in NO_MEANING.items():
        reasons.setdefault(reason, []).append(key)
    parts = [
        "These count, and mean what they mean in NeMo-RL where it has them:\n",
        _table(("section", "keys"), ((f"`{section}`", names) for section, names in _by_section(known_keys()).items())),
        "These are other names of them:\n",
        _table(("key", "means"), ((f"`{theirs}`", f"`{ours}`") for theirs, ours in _OTHER_NAMES.items())),
        "These have no meaning here. A run counts those of its config, `--verbose` names them:\n",
        _table(("it ...", "keys"), ((reason, _grouped(keys)) for reason, keys in reasons.items())),
        "These are refused, but for the values that are named:\n",
        _table(("key", "taken", "it ..."), ((f"`{r.key}`", ", ".join(map(_shown, r.harmless)), r.why) for r in REFUSED)),
    ]
    return "\n".join(parts)


def their_table() -> str:
    """The tables of TRL's, Axolotl's and LLaMA-Factory's keys as Markdown."""
    parts = [
        "These keys of TRL count:\n",
        _table(("TRL", "here"), key_rows.counting()),
        "These are other names of them, of older releases, Axolotl and LLaMA-Factory, and these programs' own keys:\n",
        _table(("key", "is"), key_rows.names()),
        "These have no counterpart, and need none:\n",
        _table(("it ...", "keys"), key_rows.idle()),
        "These are refused, but for the values that are named:\n",
        _table(("key", "taken", "it ..."), key_rows.refused()),
    ]
    return "\n".join(parts)


def with_table(text: str) -> str:
    """`text`, a README, with the tables as they must be, each between its two marks."""
    for what, table in (("objectives", objective_tables()), ("keys", key_table()), ("their keys", their_table())):
        begin, end = _MADE.format(what), f"<!-- end of {what} -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _by_section(keys: Iterable[str]) -> Mapping[str, str]:
    """Section -> its keys, in one cell."""
    found: dict[str, list[str]] = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        found.setdefault(section, []).append(f"`{name}`")
    return {section: " ".join(names) for section, names in found.items()}


def _grouped(keys: Iterable[str]) -> str:
    return "; ".join(f"`{section}`: {names}" for section, names in _by_section(keys).items())


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
