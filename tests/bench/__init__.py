"""What ctr costs, as ratios from one run: `python -m tests.bench`, or `make bench` with what it compares against."""
