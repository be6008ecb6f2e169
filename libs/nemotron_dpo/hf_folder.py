"""The weights of a Hugging Face folder, judged by file names and headers: which files are read, and their precision.

The choice of files is that of transformers. A folder that holds more than one model is refused. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file
from nemotron_dpo.machine_errors import NOT_THERE
from nemotron_dpo.weights_file import COMPLETE, opened

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT8, SCALES = "F8_E4M3", "_scale_inv"  # of a weight in blocks of 8 bits; a factor a block stands under its name and this
WHOLE = 1 << 40, 1 << 40  # rows and columns of the one block where a weight in 8 bits has one factor
ACTIVATION_SCALE = ".activation_scale"  # by which some programs round what goes into such a weight, which is not done here
_PRECISIONS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", FLOAT8: "bfloat16"}
# tensors that old checkpoints hold, which all versions of transformers ignore
_OLD = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$")
_AHEAD = re.compile(r"^mtp\.")  # layers that predict several tokens ahead: they are ignored as well
# a recurrence's own parameters, and all tensors that keep a precision of their own: rounded, an expert bias picks other experts
STATES = re.compile(r"\.(mixer|linear_attn|self_attention)\.(A_log|D|dt_bias)$|\.linear_attn\.norm\.weight$")
OWN_PRECISION = re.compile(rf"{STATES.pattern}|\.(e_score_correction_bias|expert_bias)$|\.self_attention\.out_norm\.weight$")
# fields of config.json that no log-prob depends on: where they change the policy is still the same
_INERT = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: model.safetensors, or those that its index lists.

    Raises UserError where there are none, one is missing, the index is damaged, or there are two sets of them.
    """
    listed = sorted(set(index(folder).values()))
    if has_file(folder / SINGLE):
        others = [name for name in listed if name != SINGLE and (folder / name).is_file()]
        if others:
            what = f"holds two sets of weights: {SINGLE}, which transformers reads, and {INDEX} with {_and_more(others)}"
            raise UserError(what, source=folder, remedy="remove the one that is out of date")
        return [folder / SINGLE]
    if not listed:
        raise _no_weights(folder)
    for name in listed:
        if not has_file(folder / name):
            raise UserError("is missing", source=folder / name, remedy=COMPLETE)
    return [folder / name for name in listed]


def index(folder: Path) -> dict[str, str]:
    """Name of each tensor -> the file that holds it, by the index; {} without one. Raises UserError where it is damaged."""
    import orjson

    path = folder / INDEX
    if not has_file(path):
        return {}
    try:
        files: dict[str, str] = orjson.loads(path.read_bytes())["weight_map"]
        if not files:
            raise ValueError("it lists nothing")
        if any(Path(name).name != name for name in files.values()):
            raise ValueError("a file of another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is damaged ({error})", source=path, remedy=COMPLETE) from None
    return files


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors of the model. Raises UserError where a file of weights is missing or damaged."""
    return {key for path in weight_files(folder) for key in _headers(path)}


def precision(folder: Path) -> str | None:
    """The precision that all stored weights share; float32 where they differ, which holds the others exactly.

    Tensors that have a precision of their own (OWN_PRECISION) are left out. None where no weight is a float that we compute
    with. Raises UserError where a file cannot be read or holds float64.
    """
    return _common({kind for key, kind in _stored_precisions(folder) if not OWN_PRECISION.search(key)})


def states_precision(folder: Path) -> str | None:
    """As `precision`, of a recurrence's own parameters; None where there are none."""
    return _common({kind for key, kind in _stored_precisions(folder) if STATES.search(key)})


def _common(kinds: set[str]) -> str | None:
    found = {_PRECISIONS[kind] for kind in kinds if kind in _PRECISIONS}
    return next(iter(found)) if len(found) == 1 else "float32" if found else None


def is_unread(folder: Path) -> Callable[[str], bool]:
    """Tells of the name of a tensor of the folder whether it is none of the model's, and nobody reads it."""
    is_ahead = _is_ahead(folder)
    return lambda key: bool(_OLD.search(key)) or is_ahead(key)


def left_out(folder: Path) -> list[str]:
    """What of the folder is not in the policy that is read from it, a line each.

    That are layers that predict several tokens ahead, and the form of weights in 8 and in 4 bits.
    """
    is_ahead, stored = _is_ahead(folder), {key: kind for path in weight_files(folder) for key, kind in _headers(path).items()}
    counts = Counter("mtp" if _AHEAD.search(key) else ".".join(key.split(".")[:3]) for key in stored if is_ahead(key))
    what = "tensors of layers that predict several tokens ahead"
    lines = [f"{count} {what} ({prefix}.*) are left out, as in transformers" for prefix, count in counts.items()]
    if in_8_bits := sum(kind == FLOAT8 and not is_ahead(key) for key, kind in stored.items()):
        lines.append(f"{in_8_bits} weights in 8 bits are read as bfloat16, in which the policy is computed and written")
    if in_4_bits := sum(kind == "U8" and key.endswith("_blocks") for key, kind in stored.items()):
        lines.append(f"{in_4_bits} weights in 4 bits (MXFP4) are read as bfloat16, in which the policy is computed and written")
    return lines


def float8_blocks(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the blocks of which config.json says that its weights have a factor each; None where it has none.

    A size of null, which transformers does not take for its own 128, has a factor for each weight as a whole (Ministral 3).
    """
    said = config.get("quantization_config")
    if not isinstance(said, Mapping) or said.get("quant_method") != "fp8" or said.get("fmt", "e4m3") != "e4m3":
        return None
    match said.get("weight_block_size", ()):
        case None:
            return WHOLE
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def _is_ahead(folder: Path) -> Callable[[str], bool]:
    """GLM's and DeepSeek's files number such layers on behind those of the model, and config.json counts them."""
    try:
        config = parsed_config((folder / "config.json").read_bytes())
        first, count = config["num_hidden_layers"], config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0
        ahead = tuple(f"model.layers.{first + number}." for number in range(count))
    except (*NOT_THERE, ValueError, KeyError, TypeError, AttributeError):  # who reads config.json says what is wrong
        ahead = ()
    return lambda key: bool(_AHEAD.search(key)) or key.startswith(ahead)


def _headers(path: Path) -> dict[str, str]:
    """Name of each tensor of a file -> safetensors' word for its precision."""
    with opened(path, "numpy") as file:
        return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - safetensors' file is no dict


def _stored_precisions(folder: Path) -> Iterator[tuple[str, str]]:
    unread = is_unread(folder)
    for path in weight_files(folder):
        stored = {
            key: kind
            for key, kind in _headers(path).items()
            if not unread(key) and not key.endswith((SCALES, ACTIVATION_SCALE))
        }
        if wide := next((key for key, kind in stored.items() if kind == "F64"), None):
            remedy = "save the model in float32, or less"
            raise UserError(f"holds {wide} as float64, which would be rounded", source=path, remedy=remedy)
        yield from stored.items()


def parsed_config(content: bytes) -> Any:
    """The content of a config.json. Python, and so NVIDIA's files, write Infinity and NaN, which JSON does not have.

    Raises json.JSONDecodeError.
    """
    import json

    import orjson

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        if not re.search(rb"\b(Infinity|NaN)\b", content):
            raise
    try:
        tree = json.loads(content)
        json.dumps(tree, ensure_ascii=False).encode()
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except UnicodeEncodeError:  # which orjson refuses, too
        raise json.JSONDecodeError("half a character (a surrogate)", "", 0) from None
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"not UTF-8 at byte {error.start}", "", 0) from None
    return tree


def honoured_config(folder: Path) -> bytes:
    """config.json without the fields that no log-prob depends on, in canonical form; unchanged where it is no JSON object."""
    import orjson

    content = (folder / "config.json").read_bytes()
    try:
        config = parsed_config(content)
    except ValueError:
        return content
    if not isinstance(config, Mapping):
        return content
    kept = {key: value for key, value in config.items() if key not in _INERT}
    try:
        return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # nested too deeply to be written, or numbers and texts that JSON has not
        return content


def _no_weights(folder: Path) -> UserError:
    shards = sorted(path.name for path in folder.glob("model*-of-*.safetensors"))
    if shards:
        what = f"has no {INDEX}, which is to say what is in {_and_more(shards)}"
        return UserError(what, source=folder, remedy="copy it too, or save the model anew with save_pretrained")
    remedy = "only safetensors weights are read"
    if any(folder.glob("*.bin")):
        remedy += "; load its .bin files in transformers and save_pretrained them"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        remedy += f" under that name, and not {_and_more(others)}"
    return UserError("is missing", source=folder / SINGLE, remedy=remedy)


def _and_more(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
