"""Federations on one machine: who has which images, and Flower's simulation of the deployed apps."""
