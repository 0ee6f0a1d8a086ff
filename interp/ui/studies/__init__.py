"""What the pages of all studies share: opening, running and describing one."""
