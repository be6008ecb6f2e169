"""The keys of a Lepton profile."""

from nemotron_dpo.steps.executors.cloud import keys
from nemotron_dpo.steps.executors.cloud.keys import PLAIN_PATH
from nemotron_dpo.steps.profiles.keys import Key, KeyTable
from nemotron_dpo.steps.profiles.kinds import NUMBER, SHELL_LINES, TABLE, TABLES, TEXT, TEXTS

KEYS: KeyTable = {
    **keys.KEYS,
    "nemo_run_dir": Key(PLAIN_PATH, "folder for jobs on storage that is mounted in all nodes"),
    "node_group": Key(TEXT, "node group of the workspace"),
    "node_reservation": Key(TEXT, "reservation in it"),
    "resource_shape": Key(TEXT, "what a node has, such as gpu.8xh100-sxm"),
    "shared_memory_size": Key(NUMBER, "shared memory of a container in MB"),
    "mounts": Key(TABLES, 'storage: { path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }'),
    "image_pull_secrets": Key(TEXTS, "names of secrets in the workspace"),
    "pre_launch_commands": Key(SHELL_LINES, "shell at the start of the job, on each node"),
    "custom_spec": Key(TABLE, "DGX Cloud's alone", is_idle=True),
}
