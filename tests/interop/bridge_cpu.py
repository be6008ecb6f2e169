"""NVIDIA's Megatron-Bridge on a CPU: a program that converts checkpoints with it and with nothing of ours.

    import HF_DIR OUT [HF_DIR OUT ...]                     HF -> checkpoint_megatron, written by Bridge
    export CHECKPOINT HF_DIR OUT [CHECKPOINT ...]          checkpoint_megatron -> HF, read by Bridge
    compare CHECKPOINT HF_DIR [CHECKPOINT ...]             fails unless both are one model to Bridge

Each line of its stdin is one of these commands, as a JSON list. Importing Bridge takes longer than converting small models, so
that is done once, and every command is a fork, whose exit status is a line of stdout.

Bridge imports Transformer Engine, ModelOpt and Triton unconditionally: stand-ins satisfy the imports and are then taken away
again, so nothing of them runs. Without Transformer Engine its models must use megatron-core's own layers, whose norms most of
Bridge's weight tables do not name: the names are added. So that the check is no weaker than with Transformer Engine, those
models ask for the extra states that its modules have.
"""

# Megatron-Bridge is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import logging
import os
import pkgutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

gc.disable()  # what is imported stays: a collection looks at all of it again, and again in each fork

import bridge_hybrid  # noqa: E402 - imports torch
import bridge_own_layers  # noqa: E402 - and this
from bridge_stand_ins import Finder, StandIn  # noqa: E402 - stands with them

STAND_INS = ("transformer_engine", "modelopt", "triton", "datasets", *bridge_hybrid.STAND_INS)


def import_bridge() -> Any:
    """AutoBridge, importable and runnable without CUDA."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    import torch

    torch.compile = lambda model=None, **options: model or (lambda own: own)  # type: ignore[assignment] - imports a compiler that is not used
    import megatron.core

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value] - a stand-in for a GPU's
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.Stream = type("Stream", (), {})  # type: ignore[misc,assignment] - mixtures of experts make one
    torch.cuda.get_rng_state = lambda *args: torch.get_rng_state()
    path = list(sys.path)
    for module in pkgutil.walk_packages(megatron.core.__path__, "megatron.core.", onerror=lambda name: None):
        try:  # settle what megatron-core believes to be installed before the stand-ins exist
            importlib.import_module(module.name)
        except Exception:
            continue  # optional parts of megatron-core
    sys.path[:] = path
    tops = {top for top in STAND_INS if importlib.util.find_spec(top) is None}
    finder = Finder(tops)
    sys.meta_path.append(finder)
    if "modelopt" in tops:
        plugins = importlib.import_module("modelopt.torch.opt.plugins")
        for verb in ("restore_modelopt_state", "save_modelopt_state", "save_sharded_modelopt_state"):
            setattr(plugins, verb, lambda *args, **kwargs: None)
        plugins.restore_sharded_modelopt_state = lambda *args, **kwargs: None  # type: ignore[attr-defined] - a module that is imported by name
    if importlib.util.find_spec("tensorboard") is None:
        for name in ("torch.utils.tensorboard", "torch.utils.tensorboard.writer"):
            sys.modules[name] = StandIn(name)
    bridge_hybrid.prepare()
    training = ("checkpointing", "model_load_save", "post_training.checkpointing", "mlm_compat.arguments", "mlm_compat.model")
    for name in ("megatron.bridge", *(f"megatron.bridge.training.{part}" for part in training)):
        importlib.import_module(name)
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.split(".")[0] in tops]:
        del sys.modules[name]
    bridge_own_layers.use()
    bridge_hybrid.register()
    return sys.modules["megatron.bridge"].AutoBridge  # type: ignore[attr-defined] - a module that is imported by name


def transformers4_copy(hf_dir: str) -> str:
    """A copy whose config.json transformers 4 understands; the other files are linked."""
    out = tempfile.mkdtemp(prefix="hf4-")
    for name in os.listdir(hf_dir):
        os.symlink(os.path.abspath(os.path.join(hf_dir, name)), os.path.join(out, name))
    config = json.loads(Path(hf_dir, "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope and "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope:
        config["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if config["model_type"] == "nemotron_h":
        config["auto_map"] = bridge_hybrid.AUTO_MAP
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    os.remove(os.path.join(out, "config.json"))
    Path(out, "config.json").write_text(json.dumps(config))
    tokenizer = Path(out, "tokenizer_config.json")
    if tokenizer.exists():
        settings = json.loads(tokenizer.read_text())
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        tokenizer.unlink()
        tokenizer.write_text(json.dumps(settings))
    return out


def _imported(bridge: Any) -> Any:
    """The model that Bridge makes of the HF folder it was given."""
    provider = bridge.to_megatron_provider(load_weights=True)
    provider.finalize()
    return provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)


def import_checkpoint(auto: Any, hf_dir: str, out: str) -> None:
    """HF -> checkpoint_megatron in the precision of the weights."""
    from megatron.bridge.training.model_load_save import temporary_distributed_context

    hf = transformers4_copy(hf_dir)
    with temporary_distributed_context(backend="gloo"):
        bridge = auto.from_hf_pretrained(hf)
        model = _imported(bridge)
        tokenizer = hf if Path(hf, "tokenizer.json").exists() else None
        bridge.save_megatron_model(model, out, hf_tokenizer_path=tokenizer)


def export_checkpoint(auto: Any, checkpoint: str, hf_dir: str, out: str) -> None:
    """checkpoint_megatron -> the weights of an HF folder; HF_DIR says what family it is."""
    from megatron.bridge.training.model_load_save import temporary_distributed_context

    bridge = auto.from_hf_pretrained(transformers4_copy(hf_dir))
    with temporary_distributed_context(backend="gloo"):
        bridge.save_hf_weights(bridge.load_megatron_model(checkpoint, wrap_with_ddp=False), out, show_progress=False)


def compare_checkpoint(auto: Any, checkpoint: str, hf_dir: str) -> None:
    """Where Bridge cannot export, as experts without Transformer Engine: its model of our checkpoint against that of HF_DIR."""
    import torch
    from megatron.bridge.training.model_load_save import temporary_distributed_context

    bridge = auto.from_hf_pretrained(transformers4_copy(hf_dir))
    with temporary_distributed_context(backend="gloo"):
        ours = bridge.load_megatron_model(checkpoint, wrap_with_ddp=False)[0]
        _forget_backend()
        theirs = _imported(bridge)[0]
    tensors = dict(ours.state_dict())
    assert tensors.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            weights = next(theirs.parameters()).dtype
            rounded = tensors[name].to(weights).float() if name.endswith("expert_bias") else tensors[name]
            assert torch.equal(tensor, rounded), name  # Bridge 0.3.1 rounds expert biases where it imports them


def _forget_backend() -> None:
    """Let the next model choose what computes its attention: the one before leaves its choice in the environment."""
    for name in [name for name in os.environ if name.startswith("NVTE_")]:
        del os.environ[name]


def convert(auto: Any, verb: str, *arguments: str) -> None:
    """Do one command."""
    works = {"import": (import_checkpoint, 2), "export": (export_checkpoint, 3), "compare": (compare_checkpoint, 2)}
    work, count = works[verb]
    for start in range(0, len(arguments), count):
        _forget_backend()
        work(auto, *arguments[start : start + count])


def in_a_fork(auto: Any, command: list[str]) -> int:
    """The exit status of the command."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            convert(auto, *command)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Bridge prints
    auto = import_bridge()
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        print(in_a_fork(auto, json.loads(line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
