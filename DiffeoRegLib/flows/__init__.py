"""Velocity to displacement: exponentials, ODE solvers, inversion."""
