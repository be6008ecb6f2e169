"""Read the layers of a config: the settings of a profile, base files, the file, overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.config.layer import ConfigLayer
from nemotron_dpo.config.redact import redact_override
from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import expand_home

# In a YAML file this stands for the folder the file lies in, so that a config can name data beside it.
HERE = "${config_dir}"


def read_layers(
    config: str | Path | None, overrides: Sequence[str], base: Mapping[str, Any] | None = None, shipped: Path | None = None
) -> list[ConfigLayer]:
    """The layers in the order they are merged; `defaults` that are not beside a file are looked for in the folder `shipped`."""
    files = [] if config is None else _read_files(Path(config), (), shipped)
    under = [ConfigLayer("profile", "", dict(base), is_file=False)] if base else []
    return [*under, *files, *(_read_override(text) for text in overrides)]


def _read_files(path: Path, above: tuple[Path, ...], shipped: Path | None) -> list[ConfigLayer]:
    from omegaconf import DictConfig, OmegaConf

    if path.resolve() in above:
        raise UserError("its chain of defaults comes back to itself", source=path)
    text = _text(path)
    tree = _parse(text.replace(HERE, str(path.resolve().parent)), path)
    if not isinstance(tree, DictConfig):
        raise UserError("is no mapping of sections", source=path)
    bases = OmegaConf.to_container(tree).pop("defaults", None) or []  # type: ignore[union-attr] - a mapping gives a dict
    if "defaults" in OmegaConf.to_container(tree):  # type: ignore[operator] - a mapping gives a dict
        del tree["defaults"]  # and does not fill in what it names, as pop would
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("names a file or a list of files", source=path, field="defaults")
    below = [_base_file(path, expand_home(name), shipped) for name in names]
    layers = [layer for file in below for layer in _read_files(file, (*above, path.resolve()), shipped)]
    return [*layers, ConfigLayer(str(path), text, tree, is_file=True)]


def _base_file(path: Path, name: str, shipped: Path | None) -> Path:
    """The file that `path` names under `defaults`: beside it, else the shipped one, with or without ".yaml"."""
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    theirs = [shipped / name, shipped / f"{name}.yaml"] if shipped and "/" not in name else []
    others = [file for file in (*beside, *theirs) if file.is_file() and file.resolve() != path.resolve()]
    if others:
        return others[0]
    if not beside[0].exists():
        raise UserError(f"names {name}, and there is no such file", source=path, field="defaults")
    return beside[0]


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError("is a folder where a YAML file is due" if path.is_dir() else "no such config file", source=path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 (byte {error.start})", source=path) from None


def _parse(text: str, path: Path) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError, YAMLError

    documents.check_yaml(text, path)
    try:
        with documents.fitting_tags():
            return OmegaConf.create(text or "{}")
    except AssertionError:  # OmegaConf's word for a number or a date alone
        raise UserError("is no mapping of sections", source=path) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise UserError(f"is not YAML ({error.problem or error.context})", source=path, line=line) from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"is not YAML ({str(error).splitlines()[0]})", source=path) from None


def _read_override(text: str) -> ConfigLayer:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise UserError("is no KEY.PATH=VALUE", source=redact_override(text), usage=True)
    documents.check_override(text)
    try:
        with documents.fitting_tags():
            return ConfigLayer(redact_override(text), text, OmegaConf.from_dotlist([text]), is_file=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot be read ({str(error).splitlines()[0]})", source=redact_override(text), usage=True) from None
