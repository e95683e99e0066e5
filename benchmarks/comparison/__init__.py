"""Two or more runs side by side: paired differences, tables, and the regression gate."""
