"""What a sweep shows on the terminal."""
