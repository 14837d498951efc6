"""Every door through which a user's bytes come in, by name: the table that tests and campaign go through.

`source_doors` and `table_doors` are those of prepare, `config_doors` and `address_doors` the configuration's,
`weights_doors` and `model_doors` those of tensors, `root_doors` and `study_doors` what lies under a storage
root, `predict_doors` what is predicted from. `door.py` says what is promised at each.
"""

from __future__ import annotations

from fuzz import (
    address_doors,
    config_doors,
    model_doors,
    predict_doors,
    root_doors,
    source_doors,
    study_doors,
    table_doors,
    weights_doors,
)
from fuzz.door import Door

_MODULES = (
    source_doors, table_doors, config_doors, address_doors, weights_doors, model_doors, root_doors,
    study_doors, predict_doors,
)  # fmt: skip
DOORS: dict[str, Door] = {door.name: door for module in _MODULES for door in module.DOORS}
