"""Elastic controller: decisions as a pure state machine, which the server and a virtual clock drive."""
