"""`python -m interp` is the command line, `interp`."""

from interp.cli.main import main

if __name__ == "__main__":
    main()
