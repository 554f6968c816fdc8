"""The learner: what turns trajectories into better weights. `base` is the protocol, `engine` what its backends `fsdp` and
`deepspeed` share, `lora` the adapters, `group` the Ray actors."""
