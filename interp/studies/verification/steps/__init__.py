"""The steps of the verification study."""
