"""The fast exact re-run: plain torch on ragged rows, restarted where a change first matters."""
