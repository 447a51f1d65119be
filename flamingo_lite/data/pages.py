"""Pages about data: one HTML file each, which needs no network, runs no script and forbids itself to load anything.

Everything that came from a document is escaped by the template.
"""

import base64
from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("flamingo_lite.data"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, **values: Any) -> bytes:
    """The page that a template makes of the values, as UTF-8; what UTF-8 cannot hold becomes "?"."""
    return TEMPLATES.get_template(template).render(**values).encode("utf-8", "replace")


def data_uri(data: bytes, kind: str = "png") -> str:
    """The bytes of an image as an address that holds them. `kind`: "png", "jpeg", "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
