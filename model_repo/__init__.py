"""What runs inside Triton (`runtime`), and what writes the repository it runs from (`emit`)."""
