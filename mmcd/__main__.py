"""``python -m mmcd``: the same as the command ``mmcd``."""

from mmcd.cli import main

if __name__ == "__main__":
    main()
