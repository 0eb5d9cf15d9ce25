"""`python -m tiller`: the command line."""

from tiller.cli import main

if __name__ == "__main__":
    main()
