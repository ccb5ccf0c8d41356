"""What is kept in an output folder, what needs it, and what may be freed."""
