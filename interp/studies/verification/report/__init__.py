"""The report of the verification study."""
