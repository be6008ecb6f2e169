"""Profiles: the tables of env.toml that say where a step runs. Their keys, how they are read, merged, checked and written.

Every executor has one table of its keys, steps/executors/NAME/keys.py; whatever is to be known of a key is derived from that.
"""
