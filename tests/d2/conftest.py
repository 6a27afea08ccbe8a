import pytest

from tests.reference.detr import write_config
from tests.reference.squares import write_set


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """The overrides that train and test on a tiny set of squares."""
    folder = tmp_path_factory.mktemp("squares")
    return {
        "DATASETS.TRAIN": f"['{write_set(folder, 'train', 10, 0)}']",
        "DATASETS.TEST": f"['{write_set(folder, 'test', 4, 1)}']",
    }


@pytest.fixture
def family(tmp_path_factory):
    """Name of a tiny member of the DETR family, changes of its config.json -> overrides for `tiny_config`."""

    def overrides(name: str, **changed: object) -> dict[str, object]:
        return {
            "MODEL__META_ARCHITECTURE": "ScaleConsistentDETR",
            "MODEL__DETR__CONFIG": write_config(tmp_path_factory.mktemp("family"), name, **changed),
            "MODEL__DETR__NUM_CLASSES": 2,
        }

    return overrides
