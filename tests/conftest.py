"""Settings shared by all tests.

Property tests draw the same examples on every run, so that a red build can be repeated. To look for
new counterexamples: ``HYPOTHESIS_PROFILE=explore pytest tests``.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
