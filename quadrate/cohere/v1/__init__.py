"""Stubs, generated from proto/ and never edited (`make generate`)."""
