"""Where a policy or a tokenizer lies: a Hugging Face id, a Hugging Face folder, or a Megatron checkpoint (root or iter_*).

Where adapters are to be merged, it may also be a folder of Hugging Face's peft.

This module looks at names and files only. Nothing here imports torch, so tokenization can use it too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nemotron_dpo import hf_folder
from nemotron_dpo.documents import parsed_yaml
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file
from nemotron_dpo.step_folders import LAST, TRACKER, policy_of, step_of

_MEGATRON_WEIGHTS = ("*.distcp", "common.pt", ".metadata")
_ADAPTERS = "adapter_config.json"
_STEPS = ("policy", "step_*/policy", "checkpoints/step_*/policy", "run/checkpoints/step_*/policy")  # in a step, run or job
_FORMER_WEIGHTS = ("*.safetensors", *_MEGATRON_WEIGHTS, "config.json")


@dataclass(frozen=True)
class ModelSource:
    """A resolved policy: `path` is an HF folder, one Megatron iteration folder, or a peft folder of adapters.

    `hf_model` is set where a user named the model whose weights a checkpoint of Megatron-LM holds: its HF folder. `base` is
    the id or folder of the policy that adapters were trained over, where a user named it.
    """

    kind: Literal["hf", "megatron", "peft"]
    path: Path
    name: str
    hf_model: Path | None = None
    base: str | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """The folder that holds tokenizer.json; it need not exist."""
        if self.kind in ("hf", "peft"):
            return self.path
        own = self.path / "tokenizer"
        return own if self.hf_model is None or own.is_dir() else self.hf_model

    @property
    def iteration(self) -> int:
        """The training step at which a Megatron checkpoint was written; 0 for an HF folder."""
        number = self.path.name.removeprefix("iter_")
        return int(number) if self.kind == "megatron" and number.isdigit() else 0

    def weight_files(self) -> list[Path]:
        """The files that decide the forward pass: weights and what describes them.

        Raises UserError where an HF folder has no weights or two sets of them.
        """
        described = [self.path / "config.json", self.path / hf_folder.INDEX, self.path / "run_config.yaml"]
        described += [self.hf_model / "config.json"] if self.hf_model else []
        return [*self._weights(), *(path for path in described if path.is_file())]

    def files_digest(self) -> str:
        """sha256 over the weight files that are read, byte by byte, and the config's fields that count.

        Earlier versions named policies by it. Raises UserError where an HF folder has no weights or two sets of them.
        """
        if self.kind == "hf":
            return _digest(self._weights(), [hf_folder.honoured_config(self.path)])
        said = [_model_sections(self.path / "run_config.yaml")]
        said += [hf_folder.honoured_config(self.hf_model)] if self.hf_model else []
        return _digest(self._weights(), said)

    def _weights(self) -> list[Path]:
        if self.kind == "hf":
            return hf_folder.weight_files(self.path)
        return sorted({path for pattern in _MEGATRON_WEIGHTS for path in self.path.glob(pattern)})

    def former_files_digest(self) -> str:
        """The digest of files as the first versions computed it: adapters that they wrote name their base by it."""
        return _digest(sorted({path for pattern in _FORMER_WEIGHTS for path in self.path.glob(pattern)}), [])


def resolve(id_or_dir: str | Path) -> ModelSource:
    """Find the policy `id_or_dir`. A Hugging Face id is downloaded.

    Raises UserError where there is no such folder, the folder holds no model, or the hub lacks the model or is unreachable.
    """
    name = str(id_or_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(path, name)
    if path.exists():
        raise UserError("is a file where a model folder is due", source=name)
    if _looks_like_id(name):
        return ModelSource("hf", _download(name), name)
    raise UserError("no such model folder", source=name, remedy="give a Hugging Face id, an HF folder or a Megatron checkpoint")


def resolve_pretrained(path: str | Path, form: Literal["megatron_bridge", "megatron_lm"], hf_model: str | Path) -> ModelSource:
    """The weights that `checkpointing.pretrained_checkpoint` names: an iteration folder or the root of a Megatron checkpoint.

    Checkpoints of `megatron_bridge` describe themselves in run_config.yaml. Those of `megatron_lm` hold the model `hf_model`,
    a Hugging Face id or folder. Raises UserError where `path` is no Megatron checkpoint or `hf_model` no Hugging Face model.
    """
    found = resolve(path)
    if found.kind != "megatron":
        raise UserError("is no Megatron checkpoint", source=path, field="checkpointing.pretrained_checkpoint.path")
    return with_hf_model(found, hf_model) if form == "megatron_lm" else found


def with_hf_model(source: ModelSource, hf_model: str | Path) -> ModelSource:
    """`source`, a checkpoint of Megatron-LM, as weights of the Hugging Face model `hf_model`.

    Raises UserError where either is of another kind.
    """
    if source.kind != "megatron":
        remedy = "leave the model out, or name the checkpoint"
        raise UserError(
            "is no checkpoint of Megatron-LM, and needs no model named beside it", source=source.name, remedy=remedy
        )
    model = resolve(hf_model)
    if model.kind != "hf":
        raise UserError("is no Hugging Face model", source=hf_model, remedy="name the model whose weights the checkpoint holds")
    return replace(source, hf_model=model.path)


def resolve_run(source: str | Path, step: str = LAST) -> ModelSource:
    """As `resolve`, and for folders of dpo-train: a run or its checkpoints mean the policy of the last step, or of `step`.

    A step_N folder means its own policy, and the folder of a job the run in it. `step` is "last", "best" or a number; raises
    UserError where there is no such step, and (usage) where `source` is no run and a step was asked for.
    """
    policy = policy_of(Path(source), step)
    if policy is None and step != LAST:
        raise UserError(f"is no run, and has no {step} step", source=source, remedy="leave --step out", usage=True)
    return resolve(source if policy is None else policy)


def resolve_adapters(source: str | Path, base: str | None, step: str = LAST) -> ModelSource:
    """As `resolve_run`, and for a folder of peft's adapters; `base` names the policy that they were trained over.

    `base` None leaves it to the adapters themselves to say.
    """
    path = Path(source).expanduser()
    if has_file(path / _ADAPTERS) and not has_file(path / "config.json"):
        return ModelSource("peft", path, str(source), base=base)
    return replace(resolve_run(source, step), base=base)


def _local(path: Path, name: str) -> ModelSource:
    if (path / TRACKER).is_file():
        return ModelSource("megatron", _tracked_iteration(path), name)
    if (path / ".metadata").is_file():
        return ModelSource("megatron", path, name)
    if has_file(path / "config.json"):
        if has_file(path / _ADAPTERS):
            what = "holds a model and adapters of peft for it, which transformers adds where peft is installed"
            remedy = "merge them (merge_and_unload in peft) and save that, or move adapter_config.json away"
            raise UserError(what, source=name, remedy=remedy)
        return ModelSource("hf", path, name)
    iterations = sorted(path.glob("iter_*"))
    if iterations:
        return ModelSource("megatron", iterations[-1], name)
    if has_file(path / _ADAPTERS):
        remedy = "merge them into their base: ckpt-export ADAPTERS --base BASE -o DIR --to hf"
        raise UserError("holds adapters of peft and no model", source=name, remedy=remedy)
    steps = [step for pattern in _STEPS for step in path.glob(pattern)]
    remedy = f"it holds some: name {max(steps, key=lambda step: _number(step.parent))}" if steps else None
    raise UserError("is neither an HF folder (config.json) nor a Megatron checkpoint (iter_*)", source=name, remedy=remedy)


def _number(folder: Path) -> int:
    """The step of a step_N folder, -1 for any other."""
    return step_of(folder) if folder.name.removeprefix("step_").isdigit() else -1


def _tracked_iteration(root: Path) -> Path:
    text = (root / TRACKER).read_text(errors="replace").strip()
    if Path(text).name != text or not text:
        raise UserError("does not name an iteration", source=root / TRACKER, remedy="write the number of one into it")
    folder = root / (f"iter_{int(text):07d}" if text.isdigit() else text)
    if not (folder / ".metadata").is_file():
        raise UserError(f"{TRACKER} names {folder.name}, which is missing or incomplete", source=root)
    return folder


def _digest(files: list[Path], texts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    return f"sha256:{digest.hexdigest()}"


def _model_sections(run_config: Path) -> bytes:
    """The sections of a checkpoint's run_config.yaml that describe the model, in canonical form; the others name places."""
    import yaml

    if not run_config.is_file():
        return b""
    content = run_config.read_bytes()
    try:
        sections = parsed_yaml(content.decode(errors="replace"), run_config)
        return json.dumps([sections.get("model"), sections.get("nemotron_dpo")], sort_keys=True, default=str).encode()
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        return content


def _looks_like_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _download(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]  # * matches folders, too
    besides = ["*/*.json", "*/*.safetensors", "consolidated*"]  # other forms of the same weights
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=besides))
    except GatedRepoError:
        raise UserError("is gated", source=name, remedy="ask for access on its page, then `hf auth login`") from None
    except RepositoryNotFoundError:
        remedy = "check the spelling; a private or gated one needs `hf auth login`"
        raise UserError("no such folder here, nor such a model on the Hugging Face hub", source=name, remedy=remedy) from None
    except HFValidationError:
        raise UserError("no such model folder, and no Hugging Face id either", source=name) from None
    except (LocalEntryNotFoundError, OSError) as error:  # its HTTP errors are OSErrors too
        if constants.HF_HUB_OFFLINE:
            what = "no such folder here, nor in the hub's local cache, and HF_HUB_OFFLINE is set"
            remedy = "check the spelling, or unset it"
        else:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = f"no such folder here, and the Hugging Face hub cannot be reached ({reason})"
            remedy = "check the spelling of a folder, or the network and HF_ENDPOINT"
        raise UserError(what, source=name, remedy=remedy) from None
