"""`python -m groundingml.cli`, for environments without the script."""

from groundingml.cli import main

if __name__ == "__main__":
    main()
