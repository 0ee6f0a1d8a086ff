"""The pages of the verification study."""
