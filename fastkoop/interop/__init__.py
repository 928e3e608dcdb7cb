"""Arrays of any framework, in and out."""
