"""Prunus."""
