# From a fresh clone with Python 3.11, 3.12 or 3.13: pip install rust-just && just dpo-tiny

set shell := ["bash", "-euo", "pipefail", "-c"]

python := ".venv/bin/python"
# Which build of torch .venv gets: auto, cpu, cuda or the URL of a package index, as in `just torch=cuda setup`
torch := env("NEMOTRON_DPO_TORCH", "auto")
# A relative XDG_CACHE_HOME is ignored, as the XDG specification has it
cache_home := if env("XDG_CACHE_HOME", "") =~ '^/' { env("XDG_CACHE_HOME") } else { env("HOME", justfile_directory() / ".nemotron") / ".cache" }
cache := cache_home / "nemotron-dpo"
smollm2 := cache / "smollm2-135m-instruct"
hybrid := cache / "tiny-hybrid"
trl := cache / "trl-venv"
# What the tests of a file share is made once, by the worker that has the file; tests/conftest.py says which files are first.
# A worker that dies is not replaced: its test would be given to the next, and to the next
by_file := "--dist loadfile --no-loadscope-reorder --max-worker-restart 0"
# What Python compiles of the tests and of ours it keeps, even where the environment forbids it, as containers do: every worker and
# program would compile it anew
compile_once := "PYTHONDONTWRITEBYTECODE="

# List the recipes
[private]
default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Make .venv from pyproject.toml and configs/pins.txt, or refresh it when these changed
[no-exit-message]
setup:
    @pipelines/setup.sh .venv {{ quote(torch) }}

# Write configs/pins.txt and pins-hashes.txt anew after a change of pyproject.toml; --upgrade takes the newest versions
pins *ARGS: setup
    @pipelines/pins.sh configs/pins.txt {{ ARGS }}

# Ask pypi.org for known vulnerabilities of the pinned packages
audit *ARGS: setup
    @.venv/bin/uv --no-config tool run pip-audit --strict --disable-pip --require-hashes -r configs/pins-hashes.txt {{ ARGS }}

# Train the tiny policy on the sample pairs: tokenize, score, 10 steps of DPO, validate, export
dpo-tiny *OVERRIDES: setup
    @.venv/bin/nemotron-steps run rl/nemo_rl/dpo -c tiny {{ OVERRIDES }}

# Train a tiny hybrid of Nemotron-3-Nano's kinds of layers, made on the spot, on the sample pairs: the same chain
dpo-nemotron-h *OVERRIDES: setup
    @{{ python }} -m nemotron_dpo.steps.tiny_policy --hybrid configs/rl/nemo_rl/dpo/data/train.jsonl -o {{ quote(hybrid) }}
    @RL_POLICY_MODEL={{ quote(hybrid) }} .venv/bin/nemotron-steps run rl/nemo_rl/dpo -c tiny {{ OVERRIDES }}

# Train SmolLM2-135M-Instruct on 64 pairs of your own: just dpo-smollm2 DATA=<file>
dpo-smollm2 DATA: setup
    @{{ python }} pipelines/smollm2_policy.py {{ quote(smollm2) }}
    @RL_POLICY_MODEL={{ quote(smollm2) }} .venv/bin/nemotron-steps run rl/nemo_rl/dpo -c smollm2 \
        data.train.prompt_file="$(cd {{ quote(invocation_directory()) }} && realpath -- {{ quote(trim_start_match(DATA, "DATA=")) }})"

# Run every test (15 minutes on two slow cores); one worker more than cores, as tests wait for Slurm's clock and for servers
test *ARGS: setup
    @{{ compile_once }} {{ python }} -m pytest -n 3 {{ by_file }} {{ ARGS }}

# Run the tests that take seconds
test-quick *ARGS: setup
    @{{ compile_once }} {{ python }} -m pytest -n 2 {{ by_file }} -m "not slow and not real and not multiprocess" {{ ARGS }}

# Time ours and TRL's DPO on the same pairs, in turns: NEMOTRON_DPO_HH=<HH file> just bench [...]; or any objective: just bench --objective NAME
bench *ARGS: setup
    @{{ python }} pipelines/smollm2_policy.py {{ quote(smollm2) }}
    @{{ if ARGS =~ "^--objective" { "exec " + python + " tests/benchmarks/bench_objective.py " + quote(smollm2) + " " + ARGS } else { quote(just_executable()) + " --justfile " + quote(justfile()) + " _bench-trl " + ARGS } }}

[private]
_bench-trl *ARGS:
    @test -x {{ quote(trl / "bin" / "python") }} || { python3 -m venv {{ quote(trl) }} && \
        {{ quote(trl / "bin" / "pip") }} install --quiet torch==2.13.0 trl==1.16.0 datasets==5.2.0; }
    @{{ python }} tests/benchmarks/bench_dpo.py "${NEMOTRON_DPO_HH:?is not set: it names the HH pairs}" {{ quote(smollm2) }} \
        --peer {{ quote(trl / "bin" / "python") }} {{ ARGS }}

# Mend style and format where ruff can
fmt: setup
    @.venv/bin/ruff check --fix
    @.venv/bin/ruff format

# Check style, format and types
lint: setup
    @.venv/bin/ruff check
    @.venv/bin/ruff format --check
    @.venv/bin/pyright --pythonpath {{ python }}

# Remove .venv, what tools and stages cache, and what is built; trained checkpoints in .nemotron/jobs stay
clean:
    rm -rf .venv .nemotron/cache .pytest_cache .ruff_cache .hypothesis dist build
    find bin libs tests pipelines -name __pycache__ -prune -exec rm -rf {} +
    @if [ -d .nemotron/jobs ]; then echo "kept: the jobs in .nemotron/jobs, with what they trained (just clean-all lists them)"; fi

# As clean, and every job folder with its checkpoints: lists what goes and asks (not ~/.cache/nemotron-dpo)
[no-exit-message]
clean-all ANSWER="ask":
    @pipelines/clean_jobs.sh .nemotron {{ quote(ANSWER) }}
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} clean

# The chain by hand, stage by stage
mod chain 'pipelines/dpo.just'
