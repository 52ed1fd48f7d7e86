"""The distillation losses. Read `kd` first."""
