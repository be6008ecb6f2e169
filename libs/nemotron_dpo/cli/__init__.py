"""The edge of every executable: one line for an error, exit codes, signals, progress. The only library that imports click.

Exit codes: 0 done, 1 the work failed, 2 usage, 3 a run was stopped because it diverged, 130 interrupted, 143 terminated, 129
hung up. Text whose reader leaves early, as `head` does, ends by SIGPIPE and without a word; an artifact that is cut short is
an error of whoever writes it. stdout belongs to the artifact, all speech goes to stderr. Ranks of one node see the same files,
so its first rank speaks for all of them, while it can.
"""

from nemotron_dpo.cli.arguments import PATH, named_files, refuse_given
from nemotron_dpo.cli.completion import completer
from nemotron_dpo.cli.program import run
from nemotron_dpo.cli.signals import Terminated, signals_noted
from nemotron_dpo.cli.speech import is_first_rank, say, show_progress, warn_of_untried

__all__ = [
    "PATH",
    "Terminated",
    "completer",
    "is_first_rank",
    "named_files",
    "refuse_given",
    "run",
    "say",
    "show_progress",
    "signals_noted",
    "warn_of_untried",
]
