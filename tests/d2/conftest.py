import pytest

from tests.reference.squares import write_set


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """The overrides that train and test on a tiny set of squares."""
    folder = tmp_path_factory.mktemp("squares")
    return {
        "DATASETS.TRAIN": f"['{write_set(folder, 'train', 10, 0)}']",
        "DATASETS.TEST": f"['{write_set(folder, 'test', 4, 1)}']",
    }
