"""FastKoop for PyTorch models: record while they train, and move their weights with Koopman operators.

`Koopman` is all of it in three lines. `KoopmanPhase` records, fits and moves; `KoopmanSchedule` does so again and
again; `step_cost` says what it costs beside an optimizer's steps, `recording_plan` what it takes on many ranks;
`save_checkpoint` and `load_checkpoint` keep it all in files; `pruning_masks` prunes by modes; `SpectrumMonitor` watches
eigenvalues while training goes on.
"""

from .adapter.checkpoint import load_checkpoint, save_checkpoint
from .adapter.limits import Limits
from .adapter.monitor import LayerSpectrum, SpectrumMonitor, SpectrumReport
from .adapter.phase import KoopmanPhase
from .adapter.pruning import pruning_masks
from .adapter.ranks import RankError
from .adapter.recording_plan import GroupPlan, RecordingPlan
from .adapter.report import JumpReport, LayerReport
from .adapter.scale_plan import ScalePlan, recording_plan
from .adapter.schedule import KoopmanSchedule
from .adapter.step_cost import StepCost, step_cost
from .adapter.three_lines import Koopman

__all__ = [
    "GroupPlan", "JumpReport", "Koopman", "KoopmanPhase", "KoopmanSchedule", "LayerReport", "LayerSpectrum", "Limits",
    "RankError", "RecordingPlan", "ScalePlan", "SpectrumMonitor", "SpectrumReport", "StepCost", "load_checkpoint",
    "pruning_masks", "recording_plan", "save_checkpoint", "step_cost",
]  # fmt: skip
