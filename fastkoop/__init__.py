"""FastKoop: batched Koopman operators over neural-network weight trajectories, at hardware speed.

Importing this imports NumPy, Numba and SciPy; no array framework.
"""

from . import kernels, spectra
from .backends import get_num_threads, set_num_threads
from .checks import InputError
from .comparison import compare
from .cutoff import Energy, Rank
from .forecast import Forecast
from .linalg import pinv, predict
from .observables import Affine, Delay, Momentum
from .operator import KoopmanOperator, fit

__version__ = "0.2.0"
__all__ = [
    "Affine", "Delay", "Energy", "Forecast", "InputError", "KoopmanOperator", "Momentum", "Rank", "compare", "fit",
    "get_num_threads", "kernels", "pinv", "predict", "set_num_threads", "spectra",
]  # fmt: skip
