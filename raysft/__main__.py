"""`python -m raysft`, which puts the current folder before the libraries: it is moved behind them
first.
"""

from raysft.search_path import current_folder_last

if __name__ == "__main__":
    current_folder_last()
    from raysft.cli import main

    main()
