"""Measurements: a program for each claim, JSON out; what several share stands in modules here."""
