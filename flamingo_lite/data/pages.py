"""Pages about data: one HTML file each, which needs no network, runs no script and forbids itself to load anything.

Everything that came from a document is escaped by the template.
"""

import base64
from typing import Any

import jinja2


def templates_of(package: str) -> jinja2.Environment:
    """The templates in a package's folder `templates`: they escape what they are given, and a missing value is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


TEMPLATES = templates_of("flamingo_lite.data")


def page(template: str, **values: Any) -> bytes:
    """The page that a template makes of the values, as UTF-8; what UTF-8 cannot hold becomes "?"."""
    return TEMPLATES.get_template(template).render(**values).encode("utf-8", "replace")


def data_uri(data: bytes, kind: str = "png") -> str:
    """The bytes of an image as an address that holds them. `kind`: "png", "jpeg", "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
