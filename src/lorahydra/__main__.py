"""`python -m lorahydra`: the `lorahydra` command."""

from lorahydra.cli import main

if __name__ == "__main__":
    main()
