"""Time and memory of the package beside its peers. Not part of the package."""
