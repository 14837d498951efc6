"""Search architecture, encoders, resolution and learning rate. Ray Tune runs trials, an Optuna study
remembers.

space    what is searched, as data; checked against the configuration it edits
study    the Optuna study in SQLite: the truth about which trials are done, and what resume goes by
data     every dataset a trial may ask for, read once, shared by all trials of a node
trial    one trial: `fit` in a Ray Tune function, reporting each epoch
search   the Tune side: a searcher that asks and tells the study, a callback that tracks runs
run      `sweep`: all of it in order
"""

from isoformer.sweep.config import SweepConfig
from isoformer.sweep.run import SweepResult, sweep
from isoformer.sweep.space import Parameter, SearchSpace
from isoformer.sweep.study import TrialRow, open_study_line

__all__ = ["Parameter", "SearchSpace", "SweepConfig", "SweepResult", "TrialRow", "open_study_line", "sweep"]
