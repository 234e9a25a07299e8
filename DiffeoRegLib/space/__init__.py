"""Coordinates: grids in the patient, sampling, displacement fields, transforms."""
