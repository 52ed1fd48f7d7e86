"""Language models that write their reasoning down: puzzles, answers, traces, distillation."""
