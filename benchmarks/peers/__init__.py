"""Other trainers, playing the same workloads."""
