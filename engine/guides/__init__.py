"""Guides: the small models that steer the base."""
