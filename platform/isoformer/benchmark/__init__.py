"""Measurements against named alternatives, all run here and now; see `encoders.py`."""
