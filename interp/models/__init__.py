"""Models as the rest of the package sees them; the only folder that knows the backend."""
