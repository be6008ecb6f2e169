"""The keys of a local profile."""

from nemotron_dpo.steps.profiles.keys import COMMON, KeyTable

KEYS: KeyTable = COMMON
