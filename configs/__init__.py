"""What the fleet is: profiles, model specifications, errors. The bottom layer: imports nothing of ours."""
