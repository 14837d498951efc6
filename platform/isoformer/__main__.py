"""`python -m isoformer` is `isoformer`."""

from isoformer.cli import main

if __name__ == "__main__":
    main()
