"""A language model that learns from another."""

import sys
from importlib.util import find_spec

# Trainer imports peft where it is installed, and peft imports bitsandbytes: 1.5 s, and on some CPUs a warning
# on stderr, for a class that nothing here uses. It waits until it is needed, as it does for the rest of peft:
# https://github.com/huggingface/peft/issues/1665
if "bitsandbytes" not in sys.modules and find_spec("bitsandbytes") and find_spec("peft"):
    sys.modules["bitsandbytes"] = None
    try:
        import peft  # noqa: F401
    finally:
        del sys.modules["bitsandbytes"]
