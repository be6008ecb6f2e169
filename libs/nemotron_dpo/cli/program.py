"""Run the command of an executable to its exit status, whatever it meets."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from nemotron_dpo import collector, launcher, machine_errors, parent, standard_streams, versions
from nemotron_dpo.cli import completion, signals
from nemotron_dpo.cli.complaints import complain, complain_of_another, complain_of_call, lost_another_process
from nemotron_dpo.errors import UserError


def run(command: click.Command, program: str, *, joins_job: bool = False, called: str | None = None) -> NoReturn:
    """Run `command` as `program` and exit with its status. A user's mistake becomes one line on stderr.

    `called` is what a person types for it, where that is more than the program's name.

    With `joins_job` the process belongs to the job that the environment describes; without, it works alone.
    """
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    collector.collect_rarely()  # until there are tensors
    standard_streams.read_names_as_utf8()
    standard_streams.open_missing()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] - in a container they may take ASCII alone
    launcher.forget_other_jobs(joins_job=joins_job)
    completion.complete(command, program)
    signals.raise_terminated()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to their developers; -W or PYTHONWARNINGS shows them
    logging.getLogger("megatron").addHandler(logging.NullHandler())  # whatever matters is raised as well
    # megatron-core imports torch's compiler of CUDA code, which misses a CUDA runtime where there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in str(record.msg))
    status = [1]
    atexit.register(_skip_teardown, status)  # what is registered first is called last
    status[0] = _status(command, program, called or program)
    sys.exit(status[0])


def _skip_teardown(status: Sequence[int]) -> None:
    """End the process at once where torch is loaded: tearing down its modules and tensors would take a second."""
    if "torch" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status[0])


def _status(command: click.Command, program: str, called: str) -> int:
    try:
        parent.end_with_parent()
        result = _invoke(command, called)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return complain_of_call(program, called, error)
    except UserError as error:
        standard_streams.drain_stdout()
        return complain(program, str(error), 2 if error.usage else 1)
    except (ImportError, AttributeError, TypeError) as error:  # what calls into a changed library raise
        if "torch" not in sys.modules or not (untried := versions.untried()):
            raise
        return complain(program, f"{type(error).__name__}: {error} ({'; '.join(untried)})", 1)
    except RecursionError:
        return complain(program, "something that it reads is nested too deeply", 1)
    except (KeyboardInterrupt, click.Abort):
        return complain(program, "interrupted", 130)
    except signals.Terminated as end:
        return complain(program, "the terminal hung up" if end.status == signals.HUNG_UP else "terminated", end.status)
    except BrokenPipeError:
        if standard_streams.stdout_has_no_reader():
            standard_streams.end_by_sigpipe()
        return complain(program, "the reader of a pipe closed it early", 1)
    except (OSError, MemoryError) as error:
        standard_streams.drain_stdout()
        return complain(program, str(machine_errors.as_user_error(error)), 1)
    except RuntimeError as error:
        if told := machine_errors.told_in_words(error):
            return complain(program, str(told), 1)
        if not lost_another_process(error):
            raise
        return complain_of_another(program, str(error))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, as tokenizers; it derives from BaseException
            raise
        return complain(program, f"a library gave up: {error}", 1)


def _invoke(command: click.Command, called: str) -> object:
    """Run `command`. click's own main() would end silently on a broken pipe and treat EOFError as an interrupt."""
    try:
        with command.make_context(called, sys.argv[1:]) as context:
            return command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
