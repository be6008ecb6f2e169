"""Slurm's commands, and the few of the shell that a job folder needs, through a tunnel."""

from __future__ import annotations

import io
import re
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.follow import JobState, NoAnswer
from nemotron_dpo.steps.executors.slurm.tunnel import CALL_SECONDS, Tunnel

_UPLOAD = 'mkdir -p -- "${1%/*}" && { [ -n "$2" ] || mkdir -- "$1"; } && tar -xp --no-same-owner -f - -C "$1"'
_UPLOAD_SECONDS = 120
# In the environment of another job are the sizes of that one (SLURM_MEM_PER_CPU, ...), which this one would believe to be its
# own; and SBATCH_... win over a script, so what the script says is said once more.
_SBATCH = """
for name in "${!SLURM_@}"; do
  case $name in SLURM_CONF | SLURM_CONF_SERVER | SLURM_CLUSTERS | SLURM_JWT) ;; *) unset "$name" ;; esac
done
mapfile -t own < <(sed -n 's/^#SBATCH //p' "${@: -1}")
exec sbatch --parsable "${own[@]}" "$@"
"""
# what Slurm says -> what to do
_REMEDIES = {
    "Requested node configuration is not available": "cpus_per_task, mem or gpus_per_node is more than a node has",
    "Invalid generic resource": "where Slurm does not count GPUs, write gpus_per_node = 0 and nproc_per_node",
}


@dataclass(frozen=True)
class UploadedFile:
    """The content of a file and who may read it."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class SlurmClient:
    """One cluster, as the user of `tunnel`."""

    tunnel: Tunnel

    def upload(self, folder: str, files: Mapping[str, UploadedFile], *, exists: bool) -> None:
        """Make `folder`, which must not be there unless it `exists`, and put `files` into it, none readable too early."""
        argv = ["bash", "-c", f"umask 022; {_UPLOAD}", "upload", folder, "yes" if exists else ""]
        done = self.tunnel.run(argv, _archive(files), _UPLOAD_SECONDS)
        if done.returncode:
            raise UserError(f"cannot be written: {_last_line(done.stderr)}", source=folder)

    def remove(self, *paths: str) -> None:
        """Remove files and folders."""
        if paths:
            self.tunnel.run(["rm", "-rf", "--", *paths])

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        return self.tunnel.run(["test", "-e", path]).returncode == 0

    def submit(self, options: Sequence[str], script: str) -> str:
        """Queue `script` and return the id of the job. Raises UserError with Slurm's own reason."""
        try:
            done = self.tunnel.run(["bash", "-c", _SBATCH, "sbatch", *options, script])
        except NoAnswer as error:
            raise NoAnswer(error.message, source="sbatch" if error.source == "bash" else error.source) from None
        if done.returncode == 0:
            return done.stdout.decode().strip().splitlines()[-1].partition(";")[0]
        if done.returncode == 127:
            raise UserError("no such program there", source="sbatch", remedy="run on the cluster, or name a login node by host")
        reason = _last_line(done.stderr).removeprefix("sbatch: ").removeprefix("error: ")
        reason = reason.removeprefix("Batch job submission failed: ")
        raise UserError(f"sbatch refused the job: {reason}", remedy=self._remedy(reason))

    def cpus_of_node(self, partition: str | None) -> int | None:
        """The least that a node of `partition` has, None being the default one; None where Slurm does not say."""
        done = self.tunnel.run(["sinfo", "--noheader", "--format", "%P %c"])
        rows = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
        there = [row[1].rstrip("+") for row in rows if len(row) == 2 and _is_of(row[0], partition)]
        return min((int(number) for number in there if number.isdigit()), default=None)

    def state(self, job_id: str) -> JobState:
        """The state of a job, from the controller, or from the accounts where that has forgotten it."""
        done = self.tunnel.run(["scontrol", "--oneliner", "show", "job", job_id])
        fields = dict(re.findall(r"(?:^|\s)(JobState|Reason|ExitCode)=(\S+)", done.stdout.decode(errors="replace")))
        if done.returncode == 0 and "JobState" in fields:
            return _state(fields["JobState"], fields.get("Reason", "None"), fields.get("ExitCode", "0:0"))
        if b"Invalid job id" not in done.stderr:
            raise NoAnswer(_last_line(done.stderr), source="scontrol")
        return self._past_state(job_id)

    def cancel(self, *job_ids: str) -> None:
        """End jobs and everything they run."""
        done = self.tunnel.run(["scancel", *job_ids])
        if done.returncode:
            raise NoAnswer(f"job {' and '.join(job_ids)} could not be cancelled: {_last_line(done.stderr)}", source="scancel")

    def read(self, path: str, offset: int = 0) -> bytes:
        """What is in a file from `offset` on; nothing where there is no such file."""
        return self.tunnel.run(["tail", "-c", f"+{offset + 1}", "--", path]).stdout

    def _past_state(self, job_id: str) -> JobState:
        done = self.tunnel.run(["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "State,ExitCode"])
        lines = done.stdout.decode(errors="replace").split()
        if done.returncode or not lines:
            raise UserError("Slurm no longer knows this job, and sacct does not either", source=f"job {job_id}")
        name, _, code = done.stdout.decode(errors="replace").strip().splitlines()[-1].rpartition("|")
        return _state(name.split()[0], "None", code)

    def _remedy(self, reason: str) -> str | None:
        if named := next((remedy for words, remedy in _REMEDIES.items() if words in reason), None):
            return named
        if "artition" not in reason or "account" in reason:
            return None
        names = self.tunnel.run(["sinfo", "--noheader", "--format", "%R"]).stdout.decode(errors="replace").split()
        return f"the cluster has {', '.join(sorted(set(names)))}" if names else None


@dataclass(frozen=True)
class SlurmJob:
    """One job, with its log; the jobs `waiting` for it are cancelled with it."""

    client: SlurmClient
    job_id: str
    log: str
    waiting: tuple[str, ...] = ()

    @property
    def pause_seconds(self) -> float:
        return self.client.tunnel.pause_seconds

    def state(self) -> JobState:
        return self.client.state(self.job_id)

    def read(self, offset: int) -> bytes:
        return self.client.read(self.log, offset)

    def cancel(self) -> None:
        self.client.cancel(self.job_id, *self.waiting)


def _is_of(shown: str, partition: str | None) -> bool:
    return shown.endswith("*") if partition is None else shown.rstrip("*") in partition.split(",")


def _state(name: str, reason: str, exit_code: str) -> JobState:
    code, _, number = exit_code.partition(":")
    return JobState(name.rstrip("+"), reason, int(code), int(number or 0))


def _archive(files: Mapping[str, UploadedFile]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(file.content), file.mode, int(time.time())
            archive.addfile(member, io.BytesIO(file.content))
    return packed.getvalue()


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"it said nothing (within {CALL_SECONDS} s)"
