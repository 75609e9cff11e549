"""Report on a sweep: tables, plots and an HTML page."""
