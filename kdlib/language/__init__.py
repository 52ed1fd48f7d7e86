"""Language models: problems, answers, traces, distillation, and what it needs."""

import logging

from kdlib.extras import require

require("language", "math_verify", "openai", "transformers", "yaml")

# Trainer imports peft, and peft bitsandbytes where that is installed, which warns on some CPUs that it has no
# faster kernel: https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2064
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
