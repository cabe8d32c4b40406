"""A GHN's file: find, fetch, verify, read."""
