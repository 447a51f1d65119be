"""All formats by name: what `flamingo-lite data convert --from NAME` reads."""

from flamingo_lite.data.convert import img2dataset
from flamingo_lite.data.convert.frame import Format

FORMATS: dict[str, Format] = {
    "img2dataset": img2dataset.FORMAT,
}
