"""Language models: problems, answers, traces, distillation, and what it needs."""
