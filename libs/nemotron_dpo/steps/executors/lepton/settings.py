"""What a Lepton profile says, checked."""

from __future__ import annotations

from nemotron_dpo.steps.executors.cloud.settings import CloudSettings, cloud_settings, is_below
from nemotron_dpo.steps.profiles.profile import CheckedProfile, Profile

_EXAMPLE = 'mounts = [{ path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }]'


def read_settings(profile: Profile) -> CloudSettings:
    """The settings of `profile`. Raises UserError naming the key."""
    given = CheckedProfile(profile)
    root = given.need("nemo_run_dir", "name a folder on storage that is mounted in all nodes")
    mounts = [dict(mount) for mount in given.get("mounts", ())]
    for mount in mounts:
        if not {"path", "mount_path", "from"} <= set(mount):
            given.refuse("mounts", "has one without path, mount_path or from", _EXAMPLE)
    if not any(is_below(root, mount["mount_path"]) for mount in mounts):
        given.refuse("nemo_run_dir", f"is {root!r}, which is on none of the mounts", _EXAMPLE)
    fields = {
        "nemo_run_dir": root,
        "node_group": given.need("node_group", "name a node group of the workspace"),
        "resource_shape": given.need("resource_shape", "name what a node has, such as gpu.8xh100-sxm"),
        "mounts": mounts,
    }
    fields |= {key: given.get(key) for key in ("node_reservation", "shared_memory_size") if given.get(key)}
    fields["image_pull_secrets"] = list(given.get("image_pull_secrets", ()))
    return cloud_settings(profile, given, root, fields, setup_lines=given.get("pre_launch_commands", ()))
