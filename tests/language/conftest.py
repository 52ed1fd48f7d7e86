import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def little_garbage():
    """Trainer collects garbage as it begins: a fifth of a second, mostly for modules imported long ago."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
