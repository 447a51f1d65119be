"""All formats by name: what `flamingo-lite data convert --from NAME` reads."""

from flamingo_lite.data.convert import (
    coco,
    csv_table,
    folder,
    img2dataset,
    karpathy,
    llava,
    m3it,
    mimic_it,
    mmc4,
    obelics,
    scienceqa,
    sharegpt,
    vqa_v2,
)
from flamingo_lite.data.convert.frame import Format

FORMATS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "csv": csv_table.FORMAT,
    "folder": folder.FORMAT,
    "img2dataset": img2dataset.FORMAT,
    "karpathy": karpathy.FORMAT,
    "llava": llava.FORMAT,
    "m3it": m3it.FORMAT,
    "mimic_it": mimic_it.FORMAT,
    "mmc4": mmc4.FORMAT,
    "obelics": obelics.FORMAT,
    "scienceqa": scienceqa.FORMAT,
    "sharegpt": sharegpt.FORMAT,
    "vqa_v2": vqa_v2.FORMAT,
}
