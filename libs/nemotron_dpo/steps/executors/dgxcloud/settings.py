"""What a DGX Cloud profile says, checked, and the application that submits."""

from __future__ import annotations

import os

from nemotron_dpo.steps.executors.cloud.settings import CloudSettings, Credentials, cloud_settings, is_below
from nemotron_dpo.steps.profiles.profile import CheckedProfile, Profile

CLIENT_ID, CLIENT_SECRET = "DGXCLOUD_CLIENT_ID", "DGXCLOUD_CLIENT_SECRET"


def read_settings(profile: Profile) -> CloudSettings:
    """The settings of `profile`. Raises UserError naming the key."""
    given = CheckedProfile(profile)
    root = given.need("pvc_nemo_run_dir", "name a folder on one of pvcs")
    pvcs = [dict(claim) for claim in given.get("pvcs", ())]
    if not any(is_below(root, claim.get("path")) for claim in pvcs):
        given.refuse("pvc_nemo_run_dir", f"is {root!r}, which is on none of pvcs", 'pvcs = [{ path = "/workspace", ... }]')
    fields = {
        "base_url": given.need("base_url", "such as https://runai.example.com/api/v1"),
        "kube_apiserver_url": given.need("kube_apiserver_url", "the cluster's own address, where logs are read"),
        "project_name": given.need("project_name", "name a project of Run:ai"),
        "pvc_nemo_run_dir": root,
        "pvcs": pvcs,
        "distributed_framework": given.get("distributed_framework", "PyTorch"),
        "custom_spec": dict(given.get("custom_spec", {})),
    }
    return cloud_settings(profile, given, root, fields, credentials=_credentials(given))


def _credentials(given: CheckedProfile) -> Credentials:
    client = given.get("client_id") or given.get("app_id") or os.environ.get(CLIENT_ID)
    return client, given.get("client_secret") or given.get("app_secret") or os.environ.get(CLIENT_SECRET)
