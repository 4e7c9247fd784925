"""Data: for now what turns text into ids and back."""
