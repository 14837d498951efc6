"""What may be said of an address that holds a secret: all of it but the secret.

`errors.IsoformerError` sends every text through here, `config.Address` what is saved, the tracker what it
logs. Masked are passwords (`scheme://user:password@`), lone tokens before a host, and what the parameters of
an address call a password, a token, a key or a signature (as in a presigned URL). `${NAME}` is no secret.
"""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(r"(?<=://)([^/@:\s]*):(?!\$\{\w+\}@)[^\s'\"]*@")
_LONE_TOKEN: Final = re.compile(r"((?:https?|s3)://)[^/@:\s'\"]+@")
_PARAMETER: Final = re.compile(
    r"(?<=[?&])([^=&\s'\"]*(?:password|passwd|secret|token|credential|signature|access_?key|api_?key)"
    r"[^=&\s'\"]*|pwd|sig)=(?!\$\{\w+\}(?:&|$))[^&\s'\"]*",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """`text` with every password, token and signature in an address replaced by ***."""
    masked = _PASSWORD.sub(r"\1:***@", text)
    return _PARAMETER.sub(r"\1=***", _LONE_TOKEN.sub(r"\1***@", masked))
