"""The soak: a fleet at a steady rate for a long time, and what it keeps that it should not. `make soak`."""
