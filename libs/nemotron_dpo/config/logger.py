"""The section `logger` of a config: the trackers that records go to besides metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nemotron_dpo.config.field_kinds import PATH


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases: arguments of wandb.init. `mode` None is WANDB_MODE's, or online."""

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None


@dataclass(frozen=True)
class MlflowConfig:
    """MLflow. What is None is MLFLOW_TRACKING_URI's and its like; without any, a folder of files in the log folder."""

    experiment_name: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    tracking_uri: str | None = field(default=None, metadata=PATH)
    artifact_location: str | None = field(default=None, metadata=PATH)


@dataclass(frozen=True)
class SwanlabConfig:
    """SwanLab: arguments of swanlab.init. `mode` None is SWANLAB_MODE's, or online where there is a key."""

    project: str | None = None
    workspace: str | None = None
    name: str | None = None
    mode: Literal["online", "local", "offline", "disabled"] | None = None


@dataclass(frozen=True)
class TrackioConfig:
    """Trackio: arguments of trackio.init; the project's database lies in the log folder."""

    project: str | None = None
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class GpuMonitoringConfig:
    """Seconds between two looks at the devices, and between two deliveries of what was seen to the trackers."""

    collection_interval: float = field(default=10.0, metadata={"more_than": 0})
    flush_interval: float = field(default=10.0, metadata={"more_than": 0})


@dataclass(frozen=True)
class LoggerConfig:
    """metrics.jsonl is always written; these name the trackers besides. `log_dir` None is the run folder's `logs`.

    A tracker is a file of training/sinks: NAME_enabled switches it on, and what NAME holds goes to it as it is. With
    `token_metrics` a record has entropy and mean_token_accuracy too. `num_val_samples_to_print` pairs of each validation are
    shown as text.
    """

    log_dir: str | None = field(default=None, metadata=PATH)
    tensorboard_enabled: bool = False
    wandb_enabled: bool = False
    token_metrics: bool = False
    mlflow_enabled: bool = False
    swanlab_enabled: bool = False
    trackio_enabled: bool = False
    wandb: WandbConfig = WandbConfig()
    mlflow: MlflowConfig = MlflowConfig()
    swanlab: SwanlabConfig = SwanlabConfig()
    trackio: TrackioConfig = TrackioConfig()
    monitor_gpus: bool = True
    num_val_samples_to_print: int = field(default=0, metadata={"minimum": 0})
    gpu_monitoring: GpuMonitoringConfig = GpuMonitoringConfig()
