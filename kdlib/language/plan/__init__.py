"""Whether a distillation fits, and how long it takes."""
