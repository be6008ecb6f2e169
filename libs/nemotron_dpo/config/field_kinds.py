"""What the metadata of a config's fields say of them."""

from __future__ import annotations

# Of a field that names a file, a folder or a model: see `with_home`.
PATH = {"is_path": True}
# Of a field that has no key of its own: `canonical` sets it.
NO_KEY = {"is_key": False}
