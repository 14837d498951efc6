"""What all pages share: the template environment, how numbers are written, the one inline script.

A page is one file: styles, figures and script are inside it, and its content security policy lets the browser
fetch nothing and run nothing but that script, which is named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isoformer import __version__
from isoformer.report.collect import finite
from isoformer.storage import open_storage
from isoformer.tracking import local_path

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """A template filled in. Everything is escaped but figures, styles and the script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "capitalised": lambda text: text[:1].upper() + text[1:],
        "number": number,
        "seconds": seconds,
        "signed": signed,
        "words": lambda text: str(text).replace("_", " "),
        **(filters or {}),
    }
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def number(value: object, digits: int = 3) -> str:
    """With so many digits behind the point; a dash for what is no number."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) and finite(value) else "–"


def signed(value: float | None, sign: str = "") -> str:
    """Three digits; with `sign` "+" a plus where it is above zero."""
    return "–" if value is None else f"{value:{sign}.3f}"


def seconds(value: float | None) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return "unknown"
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 120 else f"{value:.1f} s"


def put_page(page: str, root: str, key: str, out: Path | None, *, copy: str) -> Path:
    """Write a page and return where it is. `out` null: `key` under the root, for a bucket with a copy here of
    that name. StorageError where it cannot be written.
    """
    if out is None:
        open_storage(root).write_bytes(key, page.encode())
        if (folder := local_path(root)) is not None:
            return folder / key
        out = Path(copy)
    open_storage(out.resolve().parent).write_bytes(out.name, page.encode())
    return out
