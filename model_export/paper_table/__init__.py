"""The paper's table: all its systems, trained and scored on one data set."""
