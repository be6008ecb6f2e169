"""Exporting to an HF folder takes about as much memory as the weights: nothing holds a second copy of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support import families
from support.programs import execute

# Exports argv[2] as HF, as Megatron and back below argv[3]; prints by how many bytes each export's peak of resident memory
# exceeded what the process held before.
PROGRAM = """
import ctypes, gc, re, sys
from pathlib import Path
from nemotron_dpo.checkpoint.export import export
from nemotron_dpo.policy import parallel
from nemotron_dpo.sources import resolve

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def chain(source, target):
    for given, made, form in ((source, "hf", "hf"), (source, "megatron", "megatron"), (target / "megatron", "back", "hf")):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        export(resolve(given), target / made, form, None)
        yield status("VmHWM") - before

parallel.initialize()
warm, source, target = map(Path, sys.argv[1:4])
list(chain(warm, target / "warm"))
print(*chain(source, target / "out"))
parallel.shut_down()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux's /proc")
def test_export_takes_the_memory_of_the_weights(tmp_path: Path) -> None:
    warm = families.write_model(tmp_path / "warm", "llama")
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2112, "vocab_size": 12000, "num_hidden_layers": 8}
    source = families.write_model(tmp_path / "hf", "llama", dtype=torch.bfloat16, num_attention_heads=16, **sizes)
    weights = (source / "model.safetensors").stat().st_size
    (program := tmp_path / "peaks.py").write_text(PROGRAM)
    done = execute([sys.executable, str(program), str(warm), str(source), str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr.decode()
    hf, megatron, back = (int(peak) / weights for peak in done.stdout.split()[-3:])
    assert hf <= 1.3
    assert back <= 1.3
    assert megatron <= 1.6  # megatron-core's writer copies whatever is a part of a larger tensor, and fc1 is two parts
