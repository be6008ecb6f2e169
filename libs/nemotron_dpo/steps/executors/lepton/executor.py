"""The executor of Lepton: a run is one job of the workspace."""

from nemotron_dpo.steps.executors.cloud.launch import CloudPlace
from nemotron_dpo.steps.executors.lepton.client import submit
from nemotron_dpo.steps.executors.lepton.settings import read_settings
from nemotron_dpo.steps.executors.shared.elsewhere import ElsewhereExecutor

PLACE = CloudPlace("LeptonExecutor", read_settings, submit)
EXECUTOR = ElsewhereExecutor("Lepton", PLACE)
