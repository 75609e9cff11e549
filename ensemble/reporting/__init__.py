"""The report on a sweep: tables, plots and a page."""
