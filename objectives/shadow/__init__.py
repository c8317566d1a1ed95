"""Shadowing: requests of the served champion, compared with a challenger in a process of its own."""
