"""The paper's table: off-the-shelf, specialists, oracle, universal models, on one data set."""
