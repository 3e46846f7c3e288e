"""`python -m arctic_cli`: the `arctic` command, wherever that is not on the PATH."""

from arctic_cli.main import main

if __name__ == "__main__":
    main()
