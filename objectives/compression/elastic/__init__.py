"""Elastic network: one set of weights in which smaller networks are nested, trained once and sliced for each shape."""
