"""Infrastructure of all commands: options, exit status, messages, progress, tables and parallel work."""
