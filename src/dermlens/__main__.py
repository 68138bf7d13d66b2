"""``python -m dermlens``: the command line."""

from dermlens.cli import main

if __name__ == "__main__":
    main()
