"""What training changed: adapters of one base, merged, taken back, and beside compressions."""
