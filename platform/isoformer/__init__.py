"""IsoFormer Platform: multi-modal transfer learning over biological foundation models, at cluster scale."""

__version__ = "0.1.0"
