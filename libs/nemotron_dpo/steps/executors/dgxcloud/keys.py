"""The keys of a DGX Cloud profile."""

from nemotron_dpo.steps.executors.cloud import keys
from nemotron_dpo.steps.executors.cloud.keys import PLAIN_PATH
from nemotron_dpo.steps.profiles.keys import Key, KeyTable
from nemotron_dpo.steps.profiles.kinds import SECRET, TABLE, TABLES, TEXT, URL

KEYS: KeyTable = {
    **keys.KEYS,
    "base_url": Key(URL, "Run:ai's address, such as https://runai.example.com/api/v1"),
    "kube_apiserver_url": Key(URL, "the cluster's own address, where logs are read"),
    "client_id": Key(TEXT, "the application that submits; else DGXCLOUD_CLIENT_ID"),
    "client_secret": Key(SECRET, "its secret; better in DGXCLOUD_CLIENT_SECRET"),
    "app_id": Key(TEXT, "an older name of client_id"),
    "app_secret": Key(SECRET, "an older name of client_secret"),
    "project_name": Key(TEXT, "project of Run:ai"),
    "pvc_nemo_run_dir": Key(PLAIN_PATH, "folder for jobs on one of pvcs"),
    "pvcs": Key(TABLES, 'claims on storage: { name = "s", path = "/workspace" }'),
    "distributed_framework": Key(TEXT, "Run:ai's word for torchrun; PyTorch"),
    "custom_spec": Key(TABLE, "added to the workload's spec"),
}
