"""Colour photographs that ordinary packages carry, so that a first visual model needs no download.

| photograph | package | licence |
| --- | --- | --- |
| astronaut, hubble_deep_field | scikit-image | public domain (NASA) |
| chelsea, coffee | scikit-image | CC0 (Stefan van der Walt, Rachel Michetti) |
| ihc, retina | scikit-image | no known restrictions; CC0 or public domain |
| motorcycle_left | scikit-image | CC0 |
| rocket | scikit-image | public domain (SpaceX) |
| china, flower | scikit-learn | CC BY 2.0 |
| grace_hopper | matplotlib | public domain (U.S. Navy) |

Only files inside the installed packages count; what scikit-image would fetch over the network is not asked for. Its
grey photographs are left out, because a grey photograph has no colours to learn, and motorcycle_right, because it shows
the scene of motorcycle_left again.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from data_pipeline.errors import SourceError

PHOTOGRAPHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("skimage", "scikit-image"): (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    ("sklearn", "scikit-learn"): ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    ("matplotlib", "matplotlib"): ("mpl-data/sample_data/grace_hopper.jpg",),
}
"""(module, package) -> files in the module's folder."""


def builtin_photographs() -> list[Path]:
    """The files, always in the same order.

    Raises:
        SourceError: a package is not installed, or does not carry a photograph.
    """
    found = []
    for (module, package), names in PHOTOGRAPHS.items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise SourceError(
                f"the built-in photographs need the package {package}: pip install 'tinypi[vision]', or name your own"
                " with --images"
            )
        for name in names:
            path = Path(next(iter(spec.submodule_search_locations))) / name
            if not path.is_file():
                raise SourceError(
                    f"{path}: this version of {package} does not carry it; name photographs with --images"
                )
            found.append(path)
    return found
