"""Language models: problems, answers, traces, distillation, and what it needs."""

from kdlib.extras import require

require("language", "math_verify", "openai", "transformers", "yaml")
