"""Run it, watch it, measure it, train its models: every command of natix-fleet."""
