"""Scripts for building, checking and installing the project."""
