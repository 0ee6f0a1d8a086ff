"""What the pages of a typed prompt share: its readings, measures of heads, tokens that react."""
