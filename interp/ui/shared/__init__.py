"""What all pages share: state in the address, jobs, cached results, widgets."""
