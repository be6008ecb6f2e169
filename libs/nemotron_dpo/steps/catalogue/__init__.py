"""The steps there are: their manifests, how each one's config is planned, and the env.toml that says where they run."""
