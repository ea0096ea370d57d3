"""What is remembered and shipped: tuned profiles and workload presets."""
