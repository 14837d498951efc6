"""Predict expression of new transcripts with a finished model.

    input file → rows (`inputs.py`) → sequences as prepare makes them (`rows.py`) → `SequenceModel`
               → one file (`run.py`), or part files made in parallel (`parts.py`)

`bundle.py` packs a model and its encoders into a folder of their own; `pyfunc.py` makes an MLflow model of
it.
"""
