"""Every kind of input by its name: sound examples, and the code that must take any other."""

from __future__ import annotations

from collections.abc import Mapping

from fuzz.inputs import configs, models, records, rows, tokenizers
from fuzz.target import Target

ALL: Mapping[str, Target] = {
    target.name: target for room in (rows, configs, models, tokenizers, records) for target in room.TARGETS
}
