"""Settings shared by all tests.

Property tests draw the same examples on every run, so that a red build can be repeated. To look for
new counterexamples: ``HYPOTHESIS_PROFILE=explore pytest tests``.
"""

import gc
import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# What is imported stays to the end, so that no search for garbage need go through it. Trainer begins each run
# with one, of a third of a second.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # else a library complains, as Python ends, of what it has left
