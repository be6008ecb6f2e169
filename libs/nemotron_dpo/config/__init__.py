"""Configuration of a run: YAML with `defaults`, dataclass defaults and a dotlist become frozen dataclasses.

The only OmegaConf user. Config becomes plain arguments in the executables; libraries never see a config tree.
"""

from nemotron_dpo.config.checks import ranking, router_refusal, seconds_until
from nemotron_dpo.config.dpo import of_val_set
from nemotron_dpo.config.dump import dump_run, plain_tree, run_tree, to_yaml
from nemotron_dpo.config.home import NEMO_RUN, with_home, with_job_folder
from nemotron_dpo.config.identity import identity
from nemotron_dpo.config.key_names import known_keys
from nemotron_dpo.config.load import (
    IdleKey,
    idle_keys,
    load_plain,
    load_run,
    load_run_and_idle,
    plain_idle_keys,
    plain_origins,
    run_origins,
)
from nemotron_dpo.config.objective import objective_names, objective_of
from nemotron_dpo.config.objective_settings import kl_penalty
from nemotron_dpo.config.own_objective import blamed, load_objective
from nemotron_dpo.config.redact import redact, redact_argv, redact_override
from nemotron_dpo.config.run_env import RunEnv, checked_name, leaves, load_run_env
from nemotron_dpo.config.schema import (
    CheckpointingConfig,
    ClusterConfig,
    DataConfig,
    DatasetConfig,
    DpoConfig,
    LoggerConfig,
    MegatronConfig,
    OptimizerConfig,
    PolicyConfig,
    RunConfig,
    ScheduleConfig,
    SequencePackingConfig,
    TokenizerConfig,
)

__all__ = [
    "NEMO_RUN",
    "CheckpointingConfig",
    "ClusterConfig",
    "DataConfig",
    "DatasetConfig",
    "DpoConfig",
    "IdleKey",
    "LoggerConfig",
    "MegatronConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "RunConfig",
    "RunEnv",
    "ScheduleConfig",
    "SequencePackingConfig",
    "TokenizerConfig",
    "blamed",
    "checked_name",
    "dump_run",
    "identity",
    "idle_keys",
    "kl_penalty",
    "known_keys",
    "leaves",
    "load_objective",
    "load_plain",
    "load_run",
    "load_run_and_idle",
    "load_run_env",
    "objective_names",
    "objective_of",
    "of_val_set",
    "plain_idle_keys",
    "plain_origins",
    "plain_tree",
    "ranking",
    "redact",
    "redact_argv",
    "redact_override",
    "router_refusal",
    "run_origins",
    "run_tree",
    "seconds_until",
    "to_yaml",
    "with_home",
    "with_job_folder",
]
