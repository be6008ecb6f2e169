"""Who may import whom, from the imports as they are written; and that torch stays out where help must be instant.

An edge that is allowed and that nobody uses any more is a failure too: it would let anybody use it again.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBS, BIN = ROOT / "libs" / "nemotron_dpo", ROOT / "bin"

# part -> the parts of nemotron_dpo that it may import, besides itself
ALLOWED = {
    "errors": {"terminal_text"},
    "launcher": {"errors"},
    "paths": {"errors"},
    "versions": {"errors"},
    "ages": {"errors"},
    "standard_streams": set(),
    "parent": set(),
    "collector": set(),
    "progress": {"standard_streams"},
    "terminal_text": set(),
    "outcome": set(),
    "wilson": set(),
    "wording": set(),
    "torchrun": {"errors", "parent"},
    "cli": {
        "collector",
        "errors",
        "launcher",
        "machine_errors",
        "parent",
        "paths",
        "progress",
        "standard_streams",
        "terminal_text",
        "versions",
    },
    "plain_files": {"errors"},
    "documents": {"errors", "machine_errors", "plain_files"},
    "machine_errors": {"errors"},
    "locks": {"errors", "machine_errors"},
    "processes": set(),
    "published": {"errors", "locks", "machine_errors", "processes"},
    "streams": {"errors", "kernels", "launcher", "published", "wording"},
    "folder_files": {"errors", "machine_errors"},
    "weights_file": {"errors", "folder_files", "machine_errors"},
    "hf_folder": {"errors", "folder_files", "machine_errors", "weights_file"},
    "file_digests": {"errors", "folder_files"},
    "step_folders": {"documents", "errors", "machine_errors", "plain_files"},
    "run_state": {"errors", "machine_errors", "plain_files", "processes"},
    "sources": {"documents", "errors", "folder_files", "hf_folder", "step_folders"},
    "config": {"documents", "errors", "paths", "objective", "wording"},
    "preferences": {
        "collector",
        "documents",
        "machine_errors",
        "paths",
        "file_digests",
        "folder_files",
        "hf_folder",
        "progress",
        "streams",
        "sources",
        "errors",
        "wilson",
        "wording",
    },
    "objective": set(),
    "kernels": {"errors", "paths"},
    "policy": {"kernels", "launcher", "versions", "errors"},
    "scoring": {"errors", "locks", "policy", "preferences", "published", "streams", "wording"},
    "checkpoint": {
        "scoring",
        "streams",
        "sources",
        "folder_files",
        "hf_folder",
        "weights_file",
        "file_digests",
        "documents",
        "machine_errors",
        "published",
        "errors",
        "paths",
        "policy",
    },
    "training": {
        "locks",
        "machine_errors",
        "processes",
        "published",
        "run_state",
        "step_folders",
        "streams",
        "sources",
        "errors",
        "outcome",
        "policy",
        "preferences",
        "progress",
        "objective",
        "checkpoint",
        "wording",
    },
    "report": {"documents", "errors", "outcome", "run_state", "step_folders", "streams", "steps", "wilson", "wording"},
    "model_card": {"documents", "errors", "machine_errors", "run_state", "step_folders"},
    "jobs": {"documents", "errors", "machine_errors", "outcome", "run_state", "steps", "terminal_text"},
    "steps": {
        "locks",
        "processes",
        "run_state",
        "documents",
        "machine_errors",
        "parent",
        "published",
        "step_folders",
        "errors",
        "paths",
        "launcher",
        "file_digests",
        "config",
        "sources",
        "preferences",
        "kernels",
        "outcome",
        "policy",
        "checkpoint",
        "terminal_text",
        "wiring",
        "wording",
    },
    "wiring": {
        "checkpoint",
        "config",
        "errors",
        "kernels",
        "objective",
        "policy",
        "preferences",
        "sources",
        "streams",
        "training",
        "versions",
    },
}
# room of steps -> the rooms of steps that it may import, besides itself; what stands above them all is last
ROOMS = {
    "text": set(),
    "tiny_hybrid": set(),
    "tiny_policy": {"tiny_hybrid"},
    "from_trl": set(),
    "summary": {"text"},
    "catalogue": {"text"},
    "profiles": set(),
    "estimate": {"profiles", "text", "tiny_policy"},
    "compile": {"catalogue", "profiles", "estimate", "summary", "text", "tiny_policy"},
    "executors.executor": {"compile", "profiles"},
    "executors.shared": {"compile", "profiles", "text"},
    "executors.cloud": {"catalogue", "compile", "profiles", "executors.shared"},
    "executors.local": {"compile", "profiles", "executors.shared"},
    "executors.slurm": {"catalogue", "compile", "profiles", "executors.shared"},
    "executors.lepton": {"profiles", "executors.shared", "executors.cloud"},
    "executors.dgxcloud": {"profiles", "executors.shared", "executors.cloud"},
    "sweep": {"compile", "profiles", "text", "executors.shared", "executors.slurm"},
    "completion": {"catalogue", "compile", "profiles"},
}
# modules that a part may import of another; what its programs do not load is tested below
ONLY_MODULES = {
    ("config", "objective"): {"metric_names", "modified", "protocol", "registry", "settings", "weighted_sum"},
    ("jobs", "steps"): {"compile", "text"},
    ("report", "steps"): {"catalogue"},
    ("steps", "kernels"): {"choice"},
    ("streams", "kernels"): {"choice", "kept"},
    ("steps", "policy"): {
        "architecture",
        "flops",
        "layout",
        "load_balancing",
        "lora_targets",
        "peak_flops",
        "recompute",
        "sublayers",
    },
    ("steps", "checkpoint"): {"families", "run_config"},
}
# outside package -> the parts that alone may import it
ONLY_IN = {
    "megatron": {"policy", "checkpoint"},
    "click": {"cli", "bin"},
    "omegaconf": {"config"},
    "torch": {"torchrun", "objective", "kernels", "scoring", "policy", "checkpoint", "training"},
    "transformers": set(),
}


def _part(path: Path) -> str:
    if path.is_relative_to(BIN):
        return "bin"
    return path.relative_to(LIBS).parts[0].removesuffix(".py")


@functools.cache
def _imports(path: Path) -> set[str]:
    """Dotted names of every module `path` imports, also inside functions; `from a import b` gives a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted([*LIBS.rglob("*.py"), *BIN.glob("*.py")])
PROGRAMS = {path.stem for path in BIN.glob("*.py")}


def _parts_imported(path: Path) -> set[str]:
    """The parts of nemotron_dpo that `path` imports, its own not among them."""
    ours = {name.split(".")[1] for name in _imports(path) if name.startswith("nemotron_dpo.")}
    return ours - {"__version__", _part(path)}


def _room(dotted: str) -> str:
    """The room of steps that the module `dotted`, named below steps, lies in."""
    return next(room for room in sorted(ROOMS, key=len, reverse=True) if f"{dotted}.".startswith(f"{room}."))


def _rooms_imported(path: Path) -> tuple[str, set[str]]:
    """The room of `path` and the other rooms of steps that it imports."""
    steps = "nemotron_dpo.steps."
    own = _room(".".join(path.relative_to(LIBS / "steps").with_suffix("").parts))
    named = {name.removeprefix(steps) for name in _imports(path) if name.startswith(steps)}
    return own, {_room(name) for name in named} - {own}


def test_every_part_is_listed():
    assert {_part(path) for path in MODULES} - {"bin", "__init__"} == set(ALLOWED)


def test_imports_follow_the_dag():
    assert {str(path.relative_to(ROOT)): wrong for path in MODULES if (wrong := _forbidden(path))} == {}


def _forbidden(path: Path) -> set[str]:
    """What `path` imports and may not."""
    part, imported = _part(path), _imports(path)
    forbidden = set() if part == "bin" else _parts_imported(path) - ALLOWED.get(part, set())
    for (importer, other), modules in ONLY_MODULES.items():
        named = {name.split(".")[2] for name in imported if name.startswith(f"nemotron_dpo.{other}.")}
        forbidden |= {f"{other}.{name}" for name in named - modules} if part == importer else set()
    outside = {name.split(".")[0] for name in imported}
    forbidden |= {name for name in outside & set(ONLY_IN) if part not in ONLY_IN[name]}
    return forbidden | (outside & PROGRAMS)


def test_what_is_forbidden_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rules see each kind of import, in functions too."""
    monkeypatch.setitem(globals(), "LIBS", tmp_path)
    (tmp_path / "steps").mkdir()
    written = [
        ("errors.py", "import torch\nimport nemotron_dpo.cli\nfrom nemotron_dpo import steps\n", {"torch", "cli", "steps"}),
        (
            "steps/one.py",
            "def f():\n    from nemotron_dpo.policy.no import x\n    import dpo_train\n",
            {"policy.no", "dpo_train"},
        ),
        ("steps/two.py", "from nemotron_dpo.policy.architecture import Architecture\nimport os.path\n", set()),
    ]
    for name, text, wrong in written:
        (tmp_path / name).write_text(text)
        assert _forbidden(tmp_path / name) == wrong


def test_every_edge_is_used():
    """Of parts, of the rooms of steps, of the modules and outside packages that only some may import."""
    used: dict[str, set[str]] = {part: set() for part in ALLOWED}
    rooms: dict[str, set[str]] = {room: set() for room in ROOMS}
    modules, outside = set(), set()
    for path in MODULES:
        part, imported = _part(path), _imports(path)
        used.setdefault(part, set()).update(_parts_imported(path))
        modules |= {(part, *name.split(".")[1:3]) for name in imported if name.startswith("nemotron_dpo.")}
        outside |= {(part, name.split(".")[0]) for name in imported}
        if part == "steps" and path.name != "__init__.py":
            room, others = _rooms_imported(path)
            rooms[room] |= others
    assert {part: edges - used[part] for part, edges in ALLOWED.items() if edges - used[part]} == {}
    assert rooms == ROOMS
    assert {(*pair, name) for pair, names in ONLY_MODULES.items() for name in names} <= modules
    assert {(part, name) for name, parts in ONLY_IN.items() for part in parts} <= outside


def test_the_graphs_have_no_cycle():
    for graph in (ALLOWED, ROOMS):
        TopologicalSorter(graph).prepare()


HEAVY = {"torch", "megatron", "transformers", "numpy", "tokenizers", "omegaconf", "nemo_run"}
HELPS = [
    ("preference_tokenize", ["--help"], HEAVY),
    ("ref_logprobs", ["--help"], HEAVY),
    ("dpo_train", ["--help"], HEAVY),
    ("ckpt_export", ["--help"], HEAVY),
    ("dpo_report", ["--help"], HEAVY | {"pyarrow", "vl_convert"}),
    ("dpo_runs", ["--help"], HEAVY | {"pyarrow"}),
    ("dpo_sweep", ["--help"], HEAVY | {"pyarrow"}),
    ("nemotron_steps", ["--help"], HEAVY),
    ("nemotron_steps", ["list"], HEAVY),
    ("nemotron_steps", ["show", "dpo"], HEAVY),
    ("nemotron_steps", ["run", "dpo", "-c", "tiny", "--dry-run"], HEAVY - {"omegaconf"}),  # with its estimate
    *(
        ("nemotron_steps", ["run", "dpo", "-c", "tiny", "-b", f"{place}_rl_nemo_rl_dpo", "--dry-run"], HEAVY - {"omegaconf"})
        for place in ("slurm", "lepton", "dgxcloud")
    ),
]
PROBE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("\\n@", *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(("program", "arguments", "heavy"), HELPS, ids=[" ".join([case[0], *case[1]]) for case in HELPS])
def test_help_loads_nothing_heavy(program: str, arguments: list[str], heavy: set[str], tmp_path: Path):
    argv = [sys.executable, "-c", PROBE, str(BIN / f"{program}.py"), *arguments]
    profiles = tmp_path / "env.toml"
    templates = ROOT / "configs" / "env" / "env_toml" / "templates"
    profiles.write_text("".join((templates / f"{place}.toml").read_text() for place in ("slurm", "lepton", "dgxcloud")))
    env = {**os.environ, "NEMOTRON_ENV_FILE": str(profiles)}
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("\n@ ")[2].split())
    assert "click" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_programs_are_executable_and_documented(program: str):
    path = BIN / f"{program}.py"
    assert path.stat().st_mode & 0o111
    text = path.read_text(encoding="utf-8")
    assert text.startswith('#!/usr/bin/env python3\n"""')
    assert text.endswith('if __name__ == "__main__":\n    main()\n')
