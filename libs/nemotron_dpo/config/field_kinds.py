"""What the metadata of a config's fields say of them."""

from __future__ import annotations

# Of a field that names a file, a folder or a model: see `with_home`.
PATH = {"is_path": True}
# Of a field that is not a key wherever its dataclass is: `canonical` sets it, or only some sections may.
NO_KEY = {"is_key": False}
