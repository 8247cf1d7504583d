"""Capture of torch functions as kernel graphs, their derivatives, and the emitters."""
