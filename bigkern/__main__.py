"""`python -m bigkern`: the same as the `bigkern` command."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="bigkern")
