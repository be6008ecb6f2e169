"""The steps there are: their manifests, and what `list` and `show` say of them."""
