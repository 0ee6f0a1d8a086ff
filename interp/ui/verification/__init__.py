"""Parts of the pages of the verification study."""
