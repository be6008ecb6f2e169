"""What an executor is, and the one place where that of a profile is found."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from nemotron_dpo.steps.compile.compiled_run import CompiledRun, Say
from nemotron_dpo.steps.profiles.profile import Profile


class Executor(Protocol):
    """A place where compiled runs go: this machine, a cluster, a cloud.

    Each is a folder beside this file: executor.py has it as EXECUTOR, keys.py the table of its profiles' keys, from which their
    checks, completion and documentation come. Its name stands in profiles/keys.py.
    """

    def print_plan(self, run: CompiledRun, say: Say) -> None:
        """Print the merged config and all that would be done, ready to paste; touch nothing. What is odd is told to `say`."""
        ...

    def execute(self, run: CompiledRun, say: Say) -> int:
        """Do it, and return the exit status: that of the work where the run is attached, else that of its submission.

        Raises UserError for what is missing.
        """
        ...


def executor_of(profile: Profile) -> Executor:
    """The executor that `profile` names."""
    return import_module(f"nemotron_dpo.steps.executors.{profile.executor}.executor").EXECUTOR
