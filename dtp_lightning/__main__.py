"""``python -m dtp_lightning`` is ``dtp``."""

from dtp_lightning.cli.main import main

if __name__ == "__main__":
    main()
