"""The learner: what turns trajectories into better weights. `base` is the protocol, `fsdp` a backend, `group` the Ray actors."""
