"""Why a model predicts what it does: sequences in, tables and plots out.

    attention     where an RNA encoder's heads look: 5' UTR, CDS or 3' UTR, and how that moved with tuning
    attribution   integrated gradients of one transcript, through encoders and fusion
    mutagenesis   every single-base change of a transcript
    variants      a VCF's variants, through DNA window, spliced RNA and protein

`commands.py` is the command line, `run.py` what its verbs do. No Ray here.
"""
