"""FastKoop for PyTorch models: record while they train, and move their weights with Koopman operators.

`KoopmanPhase` records, fits and moves; `KoopmanSchedule` does so again and again; `step_cost` says what it costs beside
an optimizer's steps; `save_checkpoint` and `load_checkpoint` keep it all in files; `pruning_masks` prunes by modes;
`SpectrumMonitor` watches eigenvalues while training goes on.
"""

from .adapter.checkpoint import load_checkpoint, save_checkpoint
from .adapter.limits import Limits
from .adapter.monitor import LayerSpectrum, SpectrumMonitor, SpectrumReport
from .adapter.phase import KoopmanPhase
from .adapter.pruning import pruning_masks
from .adapter.ranks import RankError
from .adapter.recording_plan import GroupPlan, RecordingPlan
from .adapter.report import JumpReport, LayerReport
from .adapter.schedule import KoopmanSchedule
from .adapter.step_cost import StepCost, step_cost

__all__ = [
    "GroupPlan", "JumpReport", "KoopmanPhase", "KoopmanSchedule", "LayerReport", "LayerSpectrum", "Limits",
    "RankError", "RecordingPlan", "SpectrumMonitor", "SpectrumReport", "StepCost", "load_checkpoint",
    "pruning_masks", "save_checkpoint", "step_cost",
]  # fmt: skip
