"""What every command needs: its exit status and messages, a progress line, and work in parallel."""
