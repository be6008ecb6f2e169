"""The edge of every executable: one line for an error, exit codes, signals, progress. The only library that imports click.

Exit codes: 0 done, 1 the work failed, 2 usage, 3 a run was stopped because it diverged, 130 interrupted, 143 terminated, 129
hung up. Text whose reader leaves early, as `head` does, ends by SIGPIPE and without a word; an artifact that is cut short is
an error of whoever writes it. stdout belongs to the artifact, all speech goes to stderr. Ranks of one node see the same files,
so its first rank speaks for all of them, while it can.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import click

from nemotron_dpo import launcher, machine_errors, parent, paths, progress, standard_streams, terminal_text, versions
from nemotron_dpo.errors import UserError

_HUNG_UP = 128 + signal.SIGHUP  # the exit status, as shells give it


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal, raised in the main thread so that `with` blocks clean up on the way out."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(signum)
        self.status = 128 + signum


class _UserPath(click.ParamType):
    """A file, a folder, "-", or the id of a model. A leading ~ becomes the home folder."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return paths.expand_home(value)


PATH = _UserPath()


def run(command: click.Command, program: str, *, joins_job: bool = False, called: str | None = None) -> NoReturn:
    """Run `command` as `program` and exit with its status. A user's mistake becomes one line on stderr.

    `called` is what a person types for it, where that is more than the program's name.

    With `joins_job` the process belongs to the job that the environment describes; without, it works alone.
    """
    standard_streams.read_names_as_utf8()
    standard_streams.open_missing()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] - in a container they may take ASCII alone
    launcher.forget_other_jobs(joins_job=joins_job)
    _complete(command, program)
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it, and it stays ignored
        signal.signal(signal.SIGHUP, _raise_terminated)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to their developers; -W or PYTHONWARNINGS shows them
    logging.getLogger("megatron").addHandler(logging.NullHandler())  # whatever matters is raised as well
    # megatron-core imports torch's compiler of CUDA code, which misses a CUDA runtime where there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in str(record.msg))
    status = [1]
    atexit.register(_skip_teardown, status)  # what is registered first is called last
    status[0] = _status(command, program, called or program)
    sys.exit(status[0])


def is_first_rank() -> bool:
    """True in a single process and on rank 0 of a job."""
    return launcher.is_first()


def say(program: str, text: str) -> None:
    """Write one line of facts to stderr, on rank 0 only."""
    if is_first_rank():
        progress.write_line(f"{program}: {terminal_text.escaped(text)}")


def warn_of_untried(program: str) -> None:
    """Warn of packages below the numbers whose installed version was not tried."""
    for line in versions.untried():
        say(program, f"warning: {line}")


def show_progress(program: str, work: progress.Work) -> progress.Progress:
    """How the work of `program` is shown: on rank 0 alone."""
    return progress.shown(work, functools.partial(say, program)) if is_first_rank() else progress.Silent()


# torchrun hands on the Ctrl-C that the terminal gave to all processes already: what comes so soon after is the same one.
_SAME_CTRL_C_SECONDS = 1.0


@contextlib.contextmanager
def signals_noted(program: str) -> Iterator[Callable[[], int]]:
    """Inside the block SIGTERM, Ctrl-C, and SIGHUP where it is not ignored, are only noted. A second Ctrl-C ends at once.

    The yielded function returns the number of the first that came, 0 before.
    """
    came: list[int] = []
    interrupted: list[float] = []

    def note(signum: int, frame: object) -> None:
        if signum == signal.SIGINT:
            if interrupted and time.monotonic() - interrupted[0] > _SAME_CTRL_C_SECONDS:
                raise KeyboardInterrupt
            if not interrupted:
                say(program, "interrupted: ends with a checkpoint once this step is done; Ctrl-C again ends at once")
            interrupted.append(time.monotonic())
        came.append(signum)

    noted = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def completer(argument: str, candidates: Callable[[str], Sequence[str | tuple[str, str]]]) -> Callable[..., list]:
    """For click's `shell_complete`: offers the candidates for the value of `argument` that was typed so far.

    A candidate is a word or a pair (word, description).
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list:
        from click.shell_completion import CompletionItem

        typed = context.params.get(argument) or next(iter(context.args), "")  # still in args where an option lacks its value
        pairs = [(found, None) if isinstance(found, str) else found for found in candidates(typed)]
        return [CompletionItem(word, help=what) for word, what in pairs if word.startswith(incomplete)]

    return complete


def _complete(command: click.Command, program: str) -> None:
    """Answer a shell that asks for completions (click's own mechanism) and exit. Otherwise do nothing."""
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    if instruction := os.environ.get(variable):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(command, {}, program, variable, instruction))


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
        return _complain_of_call(program, called, error)
    except UserError as error:
        standard_streams.drain_stdout()
        return _complain(program, str(error), 2 if error.usage else 1)
    except (ImportError, AttributeError, TypeError) as error:  # what calls into a changed library raise
        if "torch" not in sys.modules or not (untried := versions.untried()):
            raise
        return _complain(program, f"{type(error).__name__}: {error} ({'; '.join(untried)})", 1)
    except RecursionError:
        return _complain(program, "something that it reads is nested too deeply", 1)
    except (KeyboardInterrupt, click.Abort):
        return _complain(program, "interrupted", 130)
    except Terminated as end:
        return _complain(program, "the terminal hung up" if end.status == _HUNG_UP else "terminated", end.status)
    except BrokenPipeError:
        if standard_streams.stdout_has_no_reader():
            standard_streams.end_by_sigpipe()
        return _complain(program, "the reader of a pipe closed it early", 1)
    except (OSError, MemoryError) as error:
        standard_streams.drain_stdout()
        return _complain(program, str(machine_errors.as_user_error(error)), 1)
    except RuntimeError as error:
        if not _lost_another_process(error):
            raise
        return _complain_of_another(program, str(error))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, as tokenizers; it derives from BaseException
            raise
        return _complain(program, f"a library gave up: {error}", 1)


def _complain_of_call(program: str, called: str, error: click.ClickException) -> int:
    """What click finds wrong with the arguments; without any where some are needed, the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return 2
    if not isinstance(error, click.UsageError):
        return _complain(program, error.format_message(), 1)
    path = error.ctx.command_path if error.ctx else called
    message = error.format_message().replace("\n\t", " ")  # click lists choices in lines of their own
    return _complain(program, f"{message.rstrip('.')}: see '{path} --help'", 2)


def _invoke(command: click.Command, called: str) -> object:
    """Run `command`. click's own main() would end silently on a broken pipe and treat EOFError as an interrupt."""
    try:
        with command.make_context(called, sys.argv[1:]) as context:
            return command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code


_ENDED_FROM_OUTSIDE = (129, 130, 143)
_FIRST_RANK_SECONDS = 10


def _complain(program: str, line: str, status: int) -> int:
    """Write `line` on the first rank of a node. Another rank writes it if it is still there after a while.

    A mistake of the user's is met by every rank, and the first of them to exit has the others ended by torchrun. If that were
    not the first rank, nobody would have spoken. So the other ranks give it time; what only they have met they say themselves.
    """
    if not launcher.is_first_of_node():
        if status in _ENDED_FROM_OUTSIDE:
            return status
        try:
            time.sleep(_FIRST_RANK_SECONDS)
        except (KeyboardInterrupt, Terminated):
            return status
        line = f"rank {os.environ.get('RANK')}: {line}"
    progress.write_line(f"{program}: error: {terminal_text.one_line(line)}")
    return status


def _lost_another_process(error: RuntimeError) -> bool:
    """Whether `error` is torch's way to say that another process of the job is gone, or does not answer."""
    names = {kind.__name__ for kind in type(error).__mro__}  # of torch.distributed, which this module does not import
    is_of_gloo = "gloo/transport" in str(error) or "Connection closed by peer" in str(error)
    return launcher.job_size() > 1 and ("DistError" in names or is_of_gloo)


def _complain_of_another(program: str, message: str) -> int:
    """Say that another process is gone, where nobody ends this one meanwhile: who watches all of them knows which it was."""
    try:
        time.sleep(_FIRST_RANK_SECONDS)
    except (KeyboardInterrupt, Terminated):
        return 1
    what = " ".join(message.split()).removesuffix("GLHF! \N{BEACH WITH UMBRELLA}\N{VARIATION SELECTOR-16}").strip()
    progress.write_line(
        f"{program}: error: rank {launcher.rank()}: another process of the job is gone: {terminal_text.one_line(what)}"
    )
    return 1


def _raise_terminated(signum: int, frame: object) -> NoReturn:
    raise Terminated(signum)
