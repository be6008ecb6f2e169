"""Configs of other trainers (TRL, Axolotl, LLaMA-Factory) in our keys.

`tables` says what each of their keys comes to here, `meanings` makes our values of theirs, `convert` puts both together, and
`written` makes a YAML file of it. Nothing of a config is dropped: a key counts, has no counterpart for a reason, is refused
because it would change the result, or is named as unknown.
"""

from nemotron_dpo.config.theirs.convert import Choices, Converted, convert
from nemotron_dpo.config.theirs.counterparts import counterpart
from nemotron_dpo.config.theirs.files import read_theirs
from nemotron_dpo.config.theirs.written import as_yaml

__all__ = ["Choices", "Converted", "as_yaml", "convert", "counterpart", "read_theirs"]
