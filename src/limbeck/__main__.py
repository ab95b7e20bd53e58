"""`python -m limbeck` is `limbeck`."""

from .cli import main

if __name__ == "__main__":
    main()
