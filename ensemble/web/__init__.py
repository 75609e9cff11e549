"""Search page and JSON interface: the server, its access rules, and the files of the page."""
