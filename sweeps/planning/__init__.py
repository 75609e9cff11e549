"""What a sweep will run and what that costs."""
