"""A run on a cloud from the plan to the exit status: prepare one script, submit it through NeMo-Run, follow it, cancel it."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemotron_dpo.config import redact, to_yaml
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.cloud.script import CloudJobFacts, job_script
from nemotron_dpo.steps.executors.cloud.settings import CloudSettings
from nemotron_dpo.steps.executors.cloud.submission import Submission
from nemotron_dpo.steps.executors.shared import environment
from nemotron_dpo.steps.executors.shared.attend import Say, attend, nothing_left_behind
from nemotron_dpo.steps.executors.shared.follow import Follower, Watched
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import task_script
from nemotron_dpo.steps.profiles.profile import Profile

# NeMo-Run cuts names at 34.
_LONGEST_STEP = 15
SCRIPT = "launch_script.sh"


@dataclass(frozen=True)
class PreparedCloudJob:
    """A job before it is submitted: all that will be asked for, made without NeMo-Run."""

    plan: Plan
    settings: CloudSettings
    facts: CloudJobFacts
    paths: PathMap
    environment: dict[str, str]

    sees_our_files = False
    remarks = ()

    @property
    def log(self) -> str:
        return f"{self.facts.folder}/log-0.txt"

    @property
    def files(self) -> dict[str, str]:
        """What the job's folder holds; no secret."""
        settings, folder = self.settings, self.facts.folder
        texts = {name: self.paths.text(text) for name, text in self.plan.files.items()}
        texts["task.sh"] = task_script(folder, f"{folder}/train.yaml", settings.startup_commands, settings.run_command)
        return texts | {SCRIPT: job_script(self.plan, settings, self.facts, self.paths)}

    @property
    def submission(self) -> Submission:
        """What NeMo-Run is given."""
        facts, settings = self.facts, self.settings
        sizes = {
            "nodes": facts.num_nodes,
            "gpus_per_node": facts.processes_per_node if settings.has_gpus else 0,
            "nprocs_per_node": facts.processes_per_node,
        }
        fields = {**settings.executor_fields, **sizes, "env_vars": self.environment}
        return Submission(facts.name, facts.folder, settings.name, fields, settings.credentials)

    def report(self, tell: Callable[[Plan], str]) -> str:
        """Where the outputs lie: what `tell` reads is on the nodes' storage, which is not ours to see."""
        return "\n".join(f"{kind}: {self.paths.of(str(path))}" for kind, path in self.plan.artifacts.items())


class CloudJob(Watched, Protocol):
    """A job of a platform that was submitted."""

    @property
    def job_id(self) -> str: ...

    def by_hand(self) -> tuple[str, str]:
        """The commands that follow and cancel it."""
        ...


@dataclass(frozen=True)
class CloudPlace:
    """A platform that NeMo-Run submits to by its class `vendor_class`: how its profiles are read, and a job is submitted."""

    vendor_class: str
    read_settings: Callable[[Profile], CloudSettings]
    submit: Callable[[Submission, Path, Say], CloudJob]

    def prepare(
        self, plan: Plan, profile: Profile, *, num_nodes: int, checkpoint_dir: str | None, attached: bool
    ) -> PreparedCloudJob:
        """What `plan` becomes under `profile`, its processes on `num_nodes`. Raises UserError for an unfit profile."""
        settings = self.read_settings(profile)
        name = _job_name(plan)
        folder = f"{settings.job_root}/{name}"
        facts = CloudJobFacts(name, folder, num_nodes, max(1, plan.num_processes // num_nodes))
        return PreparedCloudJob(plan, settings, facts, _path_map(plan, settings, folder), environment.job_environment(profile))

    def dry_lines(self, job: PreparedCloudJob, *, force_squash: bool) -> list[tuple[str, str]]:
        """(what, text) of every file and of the request, secrets hidden."""
        submission = job.submission
        fields = dict(submission.fields) | {"env_vars": environment.shown(job.environment)}
        given = to_yaml(redact(_plain(fields)))
        files = [(f"{job.facts.folder}/{name}", text) for name, text in job.files.items()]
        return [*files, (f"submitted as {submission.name} by NeMo-Run's {self.vendor_class} with", given)]

    def launch(
        self, job: PreparedCloudJob, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object]
    ) -> int:
        """Submit `job`; where `attached`, follow it and return its exit status. The log goes to `show`, remarks to `say`."""
        if force_squash:
            say("warning: --force-squash: the platform imports container images itself")
        with nothing_left_behind(job.plan.job), _staged(job.files) as folder:
            submitted = self.submit(job.submission, Path(folder), say)
        follow, cancel = submitted.by_hand()
        if not attached:
            print(f"{submitted.job_id}\nfollow it: {follow}\ncancel it: {cancel}", flush=True)
            return 0
        say(f"job {submitted.job_id} is submitted; cancel it: {cancel}")
        return attend(Follower(submitted, submitted.job_id, job.log, show, say), say)


def _staged(files: Mapping[str, str]) -> tempfile.TemporaryDirectory[str]:
    """A folder with `files` whose name NeMo-Run may leave unquoted."""
    folder = tempfile.TemporaryDirectory(prefix="nemotron-job-", dir="/tmp")
    for name, text in files.items():
        Path(folder.name, name).write_text(text, encoding="utf-8")
    return folder


def _job_name(plan: Plan) -> str:
    """The step's own name, the job folder's time stamp, and what keeps two users apart who share the storage."""
    parts = re.fullmatch(r"(?:20)?(\d{6}-\d{6})-(.*)", plan.job.name)
    stamp, step = parts.groups() if parts else ("0", plan.job.name)
    word = re.sub(r"[^a-z0-9]+", "-", step.rpartition("-")[2].lower())[:_LONGEST_STEP].strip("-")
    return f"{word}-{stamp}-{secrets.token_hex(2)}"


def _path_map(plan: Plan, settings: CloudSettings, folder: str) -> PathMap:
    """Where the nodes have the job folder, the tiny policy (made in the job), and our configs."""
    pairs = [(str(plan.job), folder)]
    if plan.prelude:
        pairs += [(str(plan.prelude.scratch), f"{folder}/tiny-sft.partial"), (str(plan.prelude.target), f"{folder}/tiny-sft")]
    if settings.workspace:
        pairs.append((str(manifest.configs_root()), f"{settings.workspace}/configs"))
    return PathMap(tuple(pairs))


def _plain(value: Any) -> Any:
    """`value` of lists and dictionaries only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
