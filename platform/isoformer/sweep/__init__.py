"""Search architecture, encoders, resolution and learning rate. Ray Tune runs trials, an Optuna study
remembers.

space     what is searched, as data; default_space: the paper's; searched: checked against what it edits
study     the Optuna study: the truth about which trials are done, and what resume goes by
database  its address, and who may write to it; place: its folder; warm_start: what earlier ones teach
sampling  the values of the next trial; stopping: which trials are not worth going on with
data      every dataset a trial may ask for, read once, shared by all trials of a node
trial     one trial: `fit` in a Ray Tune function, reporting each epoch, keeping checkpoints
search    the Tune side: a searcher and a scheduler that ask and tell the study; track_trials: the runs
control   pause, stop, cancel from outside; supply: embeddings made on demand; population: trials with parents
run       `sweep`: all of it in order; finals: the best trials fitted anew and scored on the test genes
"""

from isoformer.sweep.config import FinalConfig, SweepConfig
from isoformer.sweep.results import SweepResult
from isoformer.sweep.run import sweep
from isoformer.sweep.space import Parameter, SearchSpace
from isoformer.sweep.study import TrialRow, open_study_line

__all__ = [
    "FinalConfig",
    "Parameter",
    "SearchSpace",
    "SweepConfig",
    "SweepResult",
    "TrialRow",
    "open_study_line",
    "sweep",
]
