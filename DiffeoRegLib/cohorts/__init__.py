"""Many registrations: a table of them, what became of each, and the workers that do them.

Nothing here knows how one registration is done: the command hands that in.
"""
