"""The executor of DGX Cloud: a run is one workload of the project."""

from nemotron_dpo.steps.executors.cloud.launch import CloudPlace
from nemotron_dpo.steps.executors.dgxcloud.client import submit
from nemotron_dpo.steps.executors.dgxcloud.settings import read_settings
from nemotron_dpo.steps.executors.shared.elsewhere import ElsewhereExecutor

PLACE = CloudPlace("DGXCloudExecutor", read_settings, submit)
EXECUTOR = ElsewhereExecutor("DGX Cloud", PLACE)
