"""`python -m tracin_core`: the command line."""

from tracin_core.cli import main

if __name__ == "__main__":
    main()
